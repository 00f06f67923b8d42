"""Runs as files: gzipped JSON lines."""

import gzip
import json
from pathlib import Path
from typing import Any

from .recipes import split_of

RUNS = Path(__file__).parent / "runs"


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write gzipped JSON lines, the same bytes for the same rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a file of [`write_rows`]."""
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def folder_of(name: str, seed: int, acts: bool = False) -> Path:
    """Folder of a run, or of the same with `diagnostics="act"`."""
    return RUNS / ("act" if acts else split_of(name, seed)) / name / str(seed)
