"""The first reading of a log: its keys, its steps, where it was resumed."""

import math
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from .formats import Row, Source
from .keys import STEP_KEYS, plain_key

_HEAD = 100
# Beyond it floating point skips integers.
_LARGEST_STEP = 2**53


class Segment(NamedTuple):
    """
    A part of a run between two starts.

    Args:
        first_step, last_step (`int`): Steps it covers.
        rows (`int`): Rows of the log.
        replaced (`int`): Rows that a later part logged again; those of the later part count.
    """

    first_step: int
    last_step: int
    rows: int
    replaced: int


@dataclass(frozen=True)
class Survey:
    """
    What a log holds.

    Args:
        step_key (`str`, *optional*): Key of the step; `None` where rows are numbered instead.
        counts (`dict[str, int]`): Key -> rows that have it.
        keep (`np.ndarray`): Of shape (rows,); False for rows that a later part of the run replaced.
        steps (`np.ndarray`): Of shape (rows,).
        segments (`tuple[Segment]`): Parts of the run.
    """

    step_key: str | None
    counts: dict[str, int]
    keep: np.ndarray
    steps: np.ndarray
    segments: tuple[Segment, ...]

    def counts_of(self, key: str | None) -> int:
        """Rollouts, if `key` comes once a rollout: about, since a resume may have logged some of them twice."""
        steps = len(np.unique(self.steps[self.keep]))
        counts = [count for name, count in self.counts.items() if key is not None and plain_key(name) == key]
        return min(steps, *counts) if counts else steps


def survey(source: Source, path: str) -> Survey:
    """
    Read a log once, with eight bytes a row.

    Raises:
        ValueError: If it has no rows, or its steps go back at most of them.
    """
    step_key = _step_key(list(islice(source.read(), _HEAD)))
    counts: Counter[str] = Counter()
    steps = array("q")
    for step, row in numbered(source, step_key):
        steps.append(step)
        counts.update(row.values.keys())
    if not steps:
        raise ValueError(" ".join([f"{path} ({source.kind}) holds no row with a number.", *source.notes]))
    all_steps = np.frombuffer(steps, dtype=np.int64)
    back = int((np.diff(all_steps) < 0).sum())
    if 2 * back > len(all_steps):
        raise ValueError(
            f"{path} ({source.kind}): the step {step_key!r} goes back at {back} of {len(all_steps)} rows. The log is "
            "sorted the wrong way round, or this is no step."
        )
    keep, segments = _resumes(all_steps)
    return Survey(step_key, dict(counts), keep, all_steps, segments)


def numbered(source: Source, step_key: str | None) -> Iterator[tuple[int, Row]]:
    """Step and row; a row without a step belongs to the one before."""
    step = 0
    for index, row in enumerate(source.read()):
        if step_key is None:
            step = index
        else:
            value = row.values.get(step_key, row.values.get("eval/global_step", math.nan))
            step = int(value) if _is_step(value) else step
        yield step, row


def _is_step(value: float) -> bool:
    return abs(value) <= _LARGEST_STEP


def _step_key(head: list[Row]) -> str | None:
    """The surest step key that most of the first rows have."""
    for key in STEP_KEYS:
        present = sum(_is_step(row.values.get(key, math.nan)) for row in head)
        if present and 2 * present >= len(head):
            return key
    return None


def _resumes(steps: np.ndarray) -> tuple[np.ndarray, tuple[Segment, ...]]:
    """Rows that count, and the parts of the run: a new one begins wherever the step goes back."""
    starts = [0, *(np.flatnonzero(np.diff(steps) < 0) + 1).tolist(), len(steps)]
    keep = np.ones(len(steps), dtype=bool)
    segments: list[Segment] = []
    limit = np.iinfo(np.int64).max
    for begin, end in reversed(list(pairwise(starts))):
        part = steps[begin:end]
        keep[begin:end] = part < limit
        replaced = int((part >= limit).sum())
        segments.append(Segment(int(part[0]), int(part[-1]), end - begin, replaced))
        limit = min(limit, part[0])
    return keep, tuple(reversed(segments))
