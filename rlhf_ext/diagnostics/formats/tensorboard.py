"""Event files of TensorBoard, read without the package: length, checksum, message, checksum, and again."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .protobuf import NoMessageError, fields
from .source import Row, Source
from .text import choose_run

# tensorflow/core/util/event.proto and framework/summary.proto, tensor.proto.
_EVENT_STEP, _EVENT_SUMMARY = 2, 5
_SUMMARY_VALUE, _VALUE_TAG, _VALUE_SIMPLE, _VALUE_TENSOR = 1, 1, 2, 8
_TENSOR_DTYPE, _TENSOR_CONTENT, _TENSOR_FLOATS, _TENSOR_DOUBLES, _TENSOR_STRINGS = 1, 4, 5, 6, 8
_DT_FLOAT, _DT_DOUBLE = 1, 2
# transformers writes the training arguments as text under this tag.
_ARGUMENTS_TAG = "args/text_summary"
_LARGEST_EVENT = 2**26


def event_files(folder: Path) -> dict[str, list[Path]]:
    """Run (sub-folder, `.` for the folder itself) -> its event files in the order they were begun."""
    runs: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*tfevents*")):
        if path.is_file():
            runs.setdefault(str(path.parent.relative_to(folder)), []).append(path)
    return runs


def tensorboard(path: Path, run: str | None) -> Source:
    """An event file, or a folder of them: files of one folder are one run, begun again at each file."""
    if path.is_file():
        files = [path]
    else:
        runs = event_files(path)
        # Beside its own file a run may have folders, one for each call of add_hparams or add_scalars.
        files = runs["." if "." in runs and run is None else choose_run(path, list(runs), run)]
    source = Source("TensorBoard event files", lambda: iter(()), names_runs=path.is_dir())
    source.read = lambda: _rows(files, source)
    source.config = _arguments(files, source)
    return source


def _rows(files: list[Path], source: Source) -> Iterator[Row]:
    for file in files:
        step: int | None = None
        values: dict[str, float] = {}
        for event_step, tag, value in _values(file, source):
            if not isinstance(value, float):
                continue
            if event_step != step and values:
                yield Row({**values, "step": float(step or 0)})
                values = {}
            step = event_step
            values[tag] = value
        if values:
            yield Row({**values, "step": float(step or 0)})


def _values(path: Path, source: Source) -> Iterator[tuple[int, str, float | bytes]]:
    """Step, tag and value of everything that is a number or a text."""
    try:
        for event in _records(path, source):
            step, summary = 0, b""
            for field, value in fields(event):
                if field == _EVENT_STEP and isinstance(value, int):
                    step = value if value < 2**63 else value - 2**64
                elif field == _EVENT_SUMMARY and isinstance(value, bytes):
                    summary = value
            for _, message in fields(summary):
                if isinstance(message, bytes):
                    tag, parsed = _value(message)
                    if parsed is not None:
                        yield step, tag, parsed
    except NoMessageError as error:
        raise ValueError(f"{path} is damaged, or no event file: {error}") from error


def _value(message: bytes) -> tuple[str, float | bytes | None]:
    tag = ""
    parsed: float | bytes | None = None
    for field, value in fields(message):
        if not isinstance(value, bytes):
            continue
        if field == _VALUE_TAG:
            tag = value.decode("utf-8", "replace")
        elif field == _VALUE_SIMPLE and len(value) == 4:
            parsed = struct.unpack("<f", value)[0]
        elif field == _VALUE_TENSOR:
            parsed = _tensor(value)
    return tag, parsed


def _tensor(message: bytes) -> float | bytes | None:
    """The number or the text in a tensor of one element, `None` for any other tensor."""
    dtype: int | None = None
    content: bytes | None = None
    for field, value in fields(message):
        if field == _TENSOR_DTYPE and isinstance(value, int):
            dtype = value
        elif field in (_TENSOR_CONTENT, _TENSOR_FLOATS, _TENSOR_DOUBLES) and isinstance(value, bytes):
            content = value
        elif field == _TENSOR_STRINGS and isinstance(value, bytes):
            return value
    if dtype == _DT_FLOAT and content is not None and len(content) == 4:
        return float(struct.unpack("<f", content)[0])
    if dtype == _DT_DOUBLE and content is not None and len(content) == 8:
        return float(struct.unpack("<d", content)[0])
    return None


def _records(path: Path, source: Source) -> Iterator[bytes]:
    """The messages of a file; one that was being written when the run ended is left out."""
    with path.open("rb") as file:
        while header := file.read(12):
            size = int.from_bytes(header[:8], "little")
            if size > _LARGEST_EVENT:
                raise ValueError(f"{path} is damaged, or no event file: an event of {size} bytes.")
            data = file.read(size + 4)
            if len(header) < 12 or len(data) < size + 4:
                source.note(f"{path.name} ends within an event: the run was cut off there, or still writes.")
                return
            yield data[:size]


def _arguments(files: list[Path], source: Source) -> dict[str, Any]:
    """The training arguments that transformers writes at the beginning."""
    for _, (_, tag, value) in zip(range(50), _values(files[0], source), strict=False):
        if tag == _ARGUMENTS_TAG and isinstance(value, bytes):
            try:
                data = json.loads(value)
            except ValueError:
                return {}
            return data if isinstance(data, dict) else {}
    return {}
