"""Logs of finished runs, whoever wrote them: the format is told from the content."""

import re
from collections.abc import Iterator
from pathlib import Path

from ..journal import samples_from
from .json_files import first_object, json_array, json_lines, objects, trainer_state
from .source import Row, Source, numbers
from .tensorboard import event_files, tensorboard
from .text import csv_table, is_csv, is_verl_console, verl_console
from .trackio import trackio
from .wandb_file import wandb_run

__all__ = ["Row", "Source", "open_log"]

_ACCEPTED = (
    "accepted are trainer_state.json, JSONL, CSV, TensorBoard event files, .wandb files and exports of W&B, trackio's "
    "project files, and console and file logs of verl"
)
_TEXT_SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".log", ".txt")


def open_log(path: str | Path, run: str | None = None) -> Source:
    """
    A log, ready to be read.

    Args:
        path (`str` or `Path`): A file, or a folder that holds one.
        run (`str`, *optional*): Which run, where there are several.

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no log, or an empty one, or holds several runs and none was named, or none of that name.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r} in {Path.cwd()}; {_ACCEPTED}.")
    source = _open_folder(path, run) if path.is_dir() else _open_file(path, run)
    if run is not None and not source.names_runs:
        raise ValueError(
            f"{path} ({source.kind}) holds one run, without a name: leave out the run {run!r}, or give the log of that run."
        )
    return source


def _open_folder(folder: Path, run: str | None) -> Source:
    for name in ("diagnostics.jsonl", "trainer_state.json"):
        if (folder / name).is_file():
            return _open_file(folder / name, run)
    states = sorted(folder.glob("checkpoint-*/trainer_state.json"), key=_checkpoint_step)
    if states:
        source = trainer_state(states[-1])
        source.note(f"Read up to the last checkpoint, {states[-1].parent.name}.")
        return source
    if event_files(folder):
        return tensorboard(folder, run)
    for pattern in ("*.db", "*.wandb", "run-*/*.wandb", "latest-run/*.wandb"):
        found = sorted(folder.glob(pattern))
        if found:
            return _open_file(_only(folder, found), run)
    found = sorted(file for file in folder.iterdir() if file.suffix in _TEXT_SUFFIXES)
    if not found:
        raise ValueError(f"{folder} holds no log; {_ACCEPTED}.")
    return _open_file(_only(folder, found), run)


def _only(folder: Path, found: list[Path]) -> Path:
    if len(found) > 1:
        names = ", ".join(str(path.relative_to(folder)) for path in found[:10])
        raise ValueError(f"{folder} holds {len(found)} files that may be logs; give one of them: {names}.")
    return found[0]


def _checkpoint_step(path: Path) -> int:
    digits = re.search(r"\d+$", path.parent.name)
    return int(digits[0]) if digits else -1


def _open_file(path: Path, run: str | None) -> Source:
    with path.open("rb") as file:
        head = file.read(2**16)
    if not head:
        raise ValueError(f"{path} is empty.")
    if head.startswith(b"SQLite format 3\0"):
        return trackio(path, run)
    if b"brain.Event:" in head[:64]:
        return tensorboard(path, run)
    if head.startswith(b":W&B"):
        return wandb_run(path)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is UTF-16, as Windows writes what a program prints: convert it to UTF-8.")
    if b"\0" in head:
        raise ValueError(f"{path} is no log: its content is binary; {_ACCEPTED}.")
    return _open_text(path, head.decode("utf-8-sig", "replace"), run)


def _open_text(path: Path, head: str, run: str | None) -> Source:
    start = head.lstrip()
    if not start:
        raise ValueError(f"{path} is empty.")
    if start.startswith("{") and '"log_history"' in head:
        return trainer_state(path)
    first = first_object(head)
    if first is not None:
        return _journal(path) if first.get("kind") in ("settings", "rollout") else json_lines(path)
    if re.match(r"\[\s*[{\]]", start):
        return json_array(path)
    if is_csv(head):
        return csv_table(path, run)
    if path.suffix in (".csv", ".tsv") and len(start.splitlines()) == 1:
        raise ValueError(f"{path} holds a header and no row.")
    if is_verl_console(path):
        return verl_console(path)
    raise ValueError(f"{path} is no log that is known here; {_ACCEPTED}.")


def _journal(path: Path) -> Source:
    """Our own `diagnostics.jsonl`; what was said at the time is left out, since it is said again."""
    source = Source("rlhf_ext diagnostics.jsonl", lambda: iter(()), canonical=True)

    def read() -> Iterator[Row]:
        damaged = 0
        for data in objects(path, source):
            if data.get("kind") == "settings":
                source.config = {key: value for key, value in data.items() if key != "kind"}
            elif data.get("kind") == "rollout":
                try:
                    values = {"step": float(data["step"]), **numbers(data["values"])}
                    row = Row(values, dict(data["provenance"]), samples_from(data["samples"]))
                except (KeyError, TypeError, ValueError, AttributeError):
                    damaged += 1
                    continue
                yield row
        if damaged:
            source.note(f"{damaged} line{'s' if damaged > 1 else ''} of rollouts that lack something were left out.")

    source.read = read
    return source
