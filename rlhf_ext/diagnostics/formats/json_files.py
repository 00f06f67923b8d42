"""JSON: an object a line, an array of objects, and the `trainer_state.json` of transformers."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .source import Row, Source, numbers
from .text import LONGEST_LINE, lines

_CHUNK = 2**18
_GAP = re.compile(r"[ \r\n\t,]*")
_SPACE = re.compile(r"[ \r\n\t]*")


def json_lines(path: Path) -> Source:
    """One object a line; verl's `file` logger puts the values under `data`, and writes NaN as null."""
    is_verl = _is_verl(path)
    source = Source("verl file logger (JSONL)" if is_verl else "JSONL", lambda: iter(()))

    def read() -> Iterator[Row]:
        for data in objects(path, source):
            if is_verl:
                yield Row({"step": float(data["step"]), **numbers(data["data"], null=math.nan)})
            else:
                yield Row(numbers(data))

    source.read = read
    return source


def objects(path: Path, source: Source) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; what is none, such as a line cut off by a crash, is counted in a note."""
    wrong = 0
    for line in lines(path):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except (ValueError, RecursionError):
            data = None
        if isinstance(data, dict):
            yield data
        else:
            wrong += 1
    if wrong:
        source.note(f"{wrong} line{'s' if wrong > 1 else ''} that hold no JSON object were left out.")


def json_array(path: Path) -> Source:
    """An array of rows, as the history that W&B exports as JSON."""

    def read() -> Iterator[Row]:
        for data in array_objects(path, "["):
            yield Row(numbers(data))

    return Source("JSON array of rows", read)


def trainer_state(path: Path) -> Source:
    """The state that transformers' Trainer keeps: training and evaluation rows mixed, NaN written as NaN."""

    def read() -> Iterator[Row]:
        for data in array_objects(path, '"log_history": ['):
            # TRL's online trainers write null for a metric that was NaN throughout.
            yield Row(numbers(data, null=math.nan))

    return Source("transformers trainer_state.json", read)


def array_objects(path: Path, opening: str) -> Iterator[dict[str, Any]]:
    """
    The objects of the array after `opening`, with the memory of one object.

    Args:
        path (`Path`): A JSON file.
        opening (`str`): Text that ends with the `[` of the array; spaces after a colon do not matter.

    Raises:
        ValueError: If there is no such array, or the file ends or breaks off within it.
    """
    decoder = json.JSONDecoder()
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        text, at = _after(file, opening, path), 0
        while True:
            at = _end_of(_GAP, text, at)
            if text.startswith("]", at):
                return
            try:
                data, end = decoder.raw_decode(text, at) if at < len(text) else (None, at)
            except (ValueError, RecursionError):
                end = at
            following = _end_of(_SPACE, text, end)
            # A number at the end of what was read may go on.
            if end > at and text.startswith((",", "]"), following):
                at = following
                if isinstance(data, dict):
                    yield data
                continue
            text, at = text[at:], 0
            more = file.read(max(_CHUNK, len(text)))
            if not more or len(text) > LONGEST_LINE:
                raise ValueError(f"{path} breaks off, or is no JSON, near {text[:40]!r}.")
            text += more


def _end_of(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    return match.end() if match else at


def _after(file: Any, opening: str, path: Path) -> str:
    """What was read after `opening`."""
    compact = opening.replace(" ", "")
    text = ""
    while more := file.read(_CHUNK):
        text += more
        for form in (opening, compact):
            _, found, rest = text.partition(form)
            if found:
                return rest
        text = text[-len(opening) :]
    raise ValueError(f"{path} has no {opening!r}.")


def first_object(head: str) -> dict[str, Any] | None:
    """The object on the first line that is not blank, if that line is one."""
    line = next((line for line in head.splitlines() if line.strip()), "")
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _is_verl(path: Path) -> bool:
    first = next((line for line in lines(path) if line.strip()), "")
    data = first_object(first)
    return data is not None and set(data) == {"step", "data"} and isinstance(data["data"], dict)
