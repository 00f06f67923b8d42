"""The `.wandb` file of a run: a log of LevelDB (blocks of 32 KiB), each record a protocol buffer."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .protobuf import NoMessageError, fields
from .source import Row, Source, numbers

_HEADER, _BLOCK, _CHUNK_HEADER = 7, 2**15, 7
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
# wandb/proto/wandb_internal.proto.
_RECORD_HISTORY, _RECORD_CONFIG, _RECORD_RUN, _RUN_CONFIG = 2, 5, 17, 4
_ITEMS, _KEY, _NESTED_KEY, _INTEGER, _NUMBER, _VALUE_JSON = 1, 1, 2, 5, 6, 16


def wandb_run(path: Path) -> Source:
    """The history of one run, as it stands on the machine that made it."""
    source = Source("W&B run file", lambda: iter(()))

    def read() -> Iterator[Row]:
        for kind, items in _records(path, source):
            if kind == _RECORD_HISTORY:
                yield Row(numbers(items))

    source.read = read
    source.config = _config(path, source)
    return source


def _config(path: Path, source: Source) -> dict[str, Any]:
    """The configuration: of the start of the run, and what was added before the first row."""
    config: dict[str, Any] = {}
    for kind, items in _records(path, source):
        if kind == _RECORD_HISTORY:
            break
        config |= items
    return config


def _items(message: bytes) -> Iterator[tuple[str, Any]]:
    """Key and value of the items of a history or a configuration."""
    for field, item in fields(message):
        if field != _ITEMS or not isinstance(item, bytes):
            continue
        names: list[str] = []
        value: Any = None
        for inner, content in fields(item):
            if inner in (_KEY, _NESTED_KEY) and isinstance(content, bytes):
                names.append(content.decode("utf-8", "replace"))
            elif inner == _VALUE_JSON and isinstance(content, bytes):
                value = _parsed(content)
            elif inner == _NUMBER and isinstance(content, bytes) and len(content) == 8:
                value = struct.unpack("<d", content)[0]
            elif inner == _INTEGER and isinstance(content, int):
                value = content if content < 2**63 else content - 2**64
        yield "/".join(name for name in names if name), value


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _records(path: Path, source: Source) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number of the field that holds it, and items, of every record."""
    try:
        for data in _whole_records(path, source):
            for field, value in fields(data):
                if isinstance(value, bytes) and field in (_RECORD_HISTORY, _RECORD_CONFIG):
                    yield field, dict(_items(value))
                elif isinstance(value, bytes) and field == _RECORD_RUN:
                    parts = [part for inner, part in fields(value) if inner == _RUN_CONFIG and isinstance(part, bytes)]
                    yield field, {key: item for part in parts for key, item in _items(part)}
    except NoMessageError as error:
        raise ValueError(f"{path} is damaged, or no file of a W&B run: {error}") from error


def _whole_records(path: Path, source: Source) -> Iterator[bytes]:
    """Records put together from their chunks; one that was being written when the run ended is left out."""
    with path.open("rb") as file:
        file.seek(_HEADER)
        parts: list[bytes] = []
        while True:
            left = _BLOCK - file.tell() % _BLOCK
            if left < _CHUNK_HEADER:
                file.seek(left, 1)
                continue
            header = file.read(_CHUNK_HEADER)
            size, kind = (int.from_bytes(header[4:6], "little"), header[6]) if len(header) == _CHUNK_HEADER else (0, 0)
            data = file.read(size)
            if kind not in (_FULL, _FIRST, _MIDDLE, _LAST) or len(data) < size:
                if header:
                    source.note(f"{path.name} ends within a record: the run was cut off there, or still writes.")
                return
            parts = [data] if kind in (_FULL, _FIRST) else [*parts, data]
            if kind in (_FULL, _LAST):
                yield b"".join(parts)
