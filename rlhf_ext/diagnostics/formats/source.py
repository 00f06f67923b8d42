"""What every reader gives: rows of numbers."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..record import Sample

_LONGEST_NUMBER = 40


class Row(NamedTuple):
    """
    One row of a log, under the names it was logged with.

    Args:
        values (`dict[str, float]`): What was logged; NaN and infinity where that was logged.
        provenance (`dict[str, str]`): As in [`Record`], where the log knows it.
        samples (`tuple[Sample]`): Completions, where the log has them.
    """

    values: dict[str, float]
    provenance: Mapping[str, str] = {}
    samples: tuple[Sample, ...] = ()


@dataclass
class Source:
    """
    A log that can be read more than once, a row at a time.

    Args:
        kind (`str`): The format in words.
        read (`Callable`): Starts at the first row.
        config (`dict[str, Any]`): Settings of the run, where the log holds them.
        canonical (`bool`): The log is in canonical names.
        names_runs (`bool`): The format has names for runs, of which one was chosen.
        notes (`list[str]`): What a reader met that the user should know; filled while reading.
    """

    kind: str
    read: Callable[[], Iterator[Row]]
    config: Mapping[str, Any] = field(default_factory=dict)
    canonical: bool = False
    names_runs: bool = False
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Keep a note once, however often the log is read."""
        if text not in self.notes:
            self.notes.append(text)


def number(value: Any) -> float | None:
    """
    The number that a JSON value stands for, `None` if it is none. Loggers write NaN and infinity as words, and a table that
    was converted to JSON may hold all its numbers as text.
    """
    if isinstance(value, float):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 2**1000 else math.inf if value > 0 else -math.inf
    return _number_in(value) if isinstance(value, str) and len(value) <= _LONGEST_NUMBER else None


def _number_in(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def numbers(data: Mapping[str, Any], null: float | None = None) -> dict[str, float]:
    """
    The numbers of a JSON object, nested names joined by `/`.

    Args:
        data (`dict[str, Any]`): The object; text, lists and booleans in it are left out.
        null (`float`, *optional*): What `null` stands for in this format; by default for a value that was not logged.
    """
    found: dict[str, float] = {}
    levels = [("", data)]
    for prefix, level in levels:
        for key, value in level.items():
            if type(value) is float:
                found[prefix + key] = value
            elif isinstance(value, dict):
                levels.append((f"{prefix}{key}/", value))
            else:
                parsed = null if value is None else number(value)
                if parsed is not None:
                    found[prefix + key] = parsed
    return found
