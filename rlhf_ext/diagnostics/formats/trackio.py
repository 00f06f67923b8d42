"""Trackio: a SQLite file per project, a JSON object of metrics per row."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

from .source import Row, Source, numbers
from .text import choose_run


def trackio(path: Path, run: str | None) -> Source:
    """
    One run of a project.

    Raises:
        ValueError: If the file is not trackio's, or damaged, or holds no such run.
    """
    runs = [str(row[0]) for row in _query(path, "SELECT run_name FROM metrics GROUP BY run_name ORDER BY MIN(id)")]
    if not runs:
        raise ValueError(f"{path} holds no run: trackio's table `metrics` is empty.")
    chosen = choose_run(path, runs, run)

    source = Source("trackio project", lambda: iter(()), config=_config(path, chosen), names_runs=True)

    def read() -> Iterator[Row]:
        damaged = 0
        for step, metrics in _query(path, "SELECT step, metrics FROM metrics WHERE run_name = ? ORDER BY id", chosen):
            data = _object(metrics)
            if data is None or not isinstance(step, int):
                damaged += 1
                continue
            yield Row({"step": float(step), **numbers(data)})
        if damaged:
            source.note(f"{damaged} row{'s' if damaged > 1 else ''} without a step or an object were left out.")

    source.read = read
    return source


def _config(path: Path, run: str) -> dict[str, Any]:
    if not list(_query(path, "SELECT name FROM sqlite_master WHERE name = 'configs'")):
        return {}
    found: dict[str, Any] = {}
    for (text,) in _query(path, "SELECT config FROM configs WHERE run_name = ? ORDER BY id", run):
        found |= _object(text) or {}
    return found


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object in a cell, if there is one."""
    try:
        data = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _query(path: Path, sql: str, *parameters: str) -> Iterator[Any]:
    """Rows of a query, on a file that is only read."""
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as connection:
            yield from connection.execute(sql, parameters)
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no project of trackio that can be read: {error}.") from error
