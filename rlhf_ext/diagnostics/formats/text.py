"""Lines of text: reading them with bounded memory, CSV, and what verl prints."""

import csv
import math
import re
from collections.abc import Iterator
from pathlib import Path

from .source import Row, Source, number

# Far above any row of a log, far below what a binary file without line ends would take.
LONGEST_LINE = 2**24

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_VERL_ROW = re.compile(r"(?:^|\s)step:(\d+) - (\S.*)")
# A newer verl prints numpy scalars as numpy does: np.float64(0.5).
_VERL_VALUE = re.compile(r"(?:np\.\w+\()?([-+\w.]+)\)?$")
_WANDB_CHART = "W&B export (CSV of a chart)"
_RUN_PREFIX = re.compile(r"^(?P<run>.+?) - (?P<key>[^\s].*?)(?P<bound>__MIN|__MAX)?$")


def lines(path: Path) -> Iterator[str]:
    """
    The lines of a file, with the memory of one line.

    Raises:
        ValueError: If a line is longer than 16 MiB.
    """
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        count = 0
        while line := file.readline(LONGEST_LINE):
            count += 1
            if len(line) == LONGEST_LINE:
                raise ValueError(
                    f"{path}: line {count} is longer than {LONGEST_LINE >> 20} MiB; a log has short rows."
                )
            yield line


def is_verl_console(path: Path) -> bool:
    """Whether a line as verl prints them comes anywhere."""
    return any("step:" in line and _VERL_ROW.search(_ANSI.sub("", line)) for line in lines(path))


def verl_console(path: Path) -> Source:
    """Lines `step:N - key:value - key:value`, among whatever else was printed, with Ray's prefixes and colours."""

    def read() -> Iterator[Row]:
        for line in lines(path):
            if "step:" not in line:
                continue
            match = _VERL_ROW.search(_ANSI.sub("", line))
            if match:
                yield Row({"step": float(match[1]), **_verl_values(match[2])})

    source = Source("verl console log", read)
    source.note("Older versions of verl print three decimals: a small KL may read 0.")
    return source


def _verl_values(text: str) -> dict[str, float]:
    values = {}
    for part in text.split(" - "):
        key, _, value = part.strip().rpartition(":")
        match = _VERL_VALUE.match(value)
        if not key or not match:
            continue
        try:
            values[key] = float(match[1])
        except ValueError:
            continue
    return values


def is_csv(head: str) -> bool:
    """Whether the first lines are a table: a header of names, and rows of as many cells, numbers among them."""
    first = head.splitlines()[:3]
    if len(first) < 2:
        return False
    delimiter = _delimiter(first[0])
    header, row = next(csv.reader([first[0]], delimiter=delimiter)), next(csv.reader([first[1]], delimiter=delimiter))
    names = [name for name in header if name and number(name) is None]
    return len(header) > 1 and len(header) == len(row) and len(names) > 1 and any(map(_is_number, row))


def csv_table(path: Path, run: str | None) -> Source:
    """A table with a header; of W&B's export of a chart (`run - key`, with `__MIN` and `__MAX`) the columns of one run."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        delimiter = _delimiter(file.readline())
        file.seek(0)
        header = next(csv.reader(file, delimiter=delimiter))
    names, kind = _columns_of_run(path, header, run)

    def read() -> Iterator[Row]:
        with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
            rows = csv.reader(file, delimiter=delimiter)
            next(rows)
            for cells in rows:
                # Blank is "not logged at this row".
                values = {names[i]: number(cell) for i, cell in enumerate(cells) if cell and i in names}
                yield Row({key: value for key, value in values.items() if value is not None})

    return Source(kind, read, names_runs=kind == _WANDB_CHART)


def _columns_of_run(path: Path, header: list[str], run: str | None) -> tuple[dict[int, str], str]:
    """Index -> key, and the format in words."""
    matches = {i: _RUN_PREFIX.match(name) for i, name in enumerate(header)}
    prefixed = {i: match for i, match in matches.items() if match}
    if not prefixed or len(prefixed) < len(header) - 1:
        return dict(enumerate(header)), "CSV table"
    runs = list(dict.fromkeys(match["run"] for match in prefixed.values()))
    chosen = choose_run(path, runs, run)
    plain = {i: header[i] for i, match in matches.items() if not match}
    return plain | {
        i: match["key"] for i, match in prefixed.items() if match["run"] == chosen and not match["bound"]
    }, _WANDB_CHART


def choose_run(path: Path, runs: list[str], run: str | None) -> str:
    """
    The run to read.

    Raises:
        ValueError: If none was named and there are several, or there is none of that name.
    """
    if run is None and len(runs) == 1:
        return runs[0]
    if run is not None and run in runs:
        return run
    shown = ", ".join(runs[:10]) + (f" and {len(runs) - 10} more" if len(runs) > 10 else "")
    if run is None:
        raise ValueError(f"{path} holds {len(runs)} runs; name one (--run): {shown}.")
    raise ValueError(f"{path} holds no run {run!r}; it holds: {shown}.")


def _delimiter(header: str) -> str:
    return max(",\t;", key=header.count)


def _is_number(text: str) -> bool:
    value = number(text)
    return value is not None and not math.isnan(value)
