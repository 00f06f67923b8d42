"""The rows of a log as one record a rollout."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from .formats import Source
from .keys import plain_key, recognise
from .mapping import KeyMap, key_map
from .record import Record, Sample
from .survey import Survey, numbered

# Of the rows of one rollout (one an optimizer step, where a trainer logs each) the mean counts, but of these not.
_MAXIMUM = {"ratio_max", "ratio_first_dev"}
_LATEST = {"eval_score", "quality", "lr", "lr_critic", "beta", "kl_target"}


class _Step(NamedTuple):
    step: int
    values: dict[str, float]
    provenance: dict[str, str]
    samples: tuple[Sample, ...]


def records(source: Source, survey: Survey, keys: KeyMap) -> Iterator[Record]:
    """
    One record a rollout, steps increasing.

    Rows of one step, such as a training and an evaluation row, are put together, the later winning. Rows that a part of
    the run after a resume logged again are left out. Where some rows lack the score, they are optimizer steps or
    evaluations that belong to the rollout before them.
    """
    group: _Rollout | None = None
    reader = _Reader(keys)
    for row in _steps(source, survey):
        values, provenance = reader.canonical(row.values)
        if not values:
            continue
        anchored = keys.anchor is None or keys.anchor in row.values
        if group is not None and anchored and group.anchored:
            yield group.record()
            group = None
        group = group or _Rollout()
        group.add(row, values, provenance | row.provenance, anchored)
    if group is not None:
        yield group.record()


def _steps(source: Source, survey: Survey) -> Iterator[_Step]:
    """Rows that count, those of one step put together."""
    plain = _PlainKeys()
    pending: _Step | None = None
    for (step, row), keep in zip(numbered(source, survey.step_key), survey.keep, strict=False):
        if not keep:
            continue
        values = {plain[key]: value for key, value in row.values.items()}
        if pending is not None and pending.step == step:
            pending.values.update(values)
            pending.provenance.update(row.provenance)
            pending = pending._replace(samples=row.samples or pending.samples)
            continue
        if pending is not None:
            yield pending
        pending = _Step(step, values, dict(row.provenance), row.samples)
    if pending is not None:
        yield pending


class LiveRollouts:
    """
    The records of a run while it logs.

    Args:
        updates_per_rollout (`int`): Optimizer steps on one rollout.
        logging_steps (`int`): Optimizer steps between two rows of the log.

    Attributes:
        keys (`KeyMap`, *optional*): How the rows are read; `None` before a row whose keys are known.
    """

    def __init__(self, updates_per_rollout: int, logging_steps: int) -> None:
        self.updates_per_rollout = updates_per_rollout
        self.logging_steps = logging_steps
        self.keys: KeyMap | None = None
        self._reader: _Reader | None = None
        self._present: set[str] = set()
        self._rows = _Rollout()

    def add(self, step: int, row: Mapping[str, float]) -> Record | None:
        """
        Takes a row of the log.

        Args:
            step (`int`): Optimizer step.
            row (`dict[str, float]`): Keys as the trainer logs them -> numbers.

        Returns:
            [`Record`], *optional*: the rollout, where this row is its last; numbers of an evaluation belong to the next.
        """
        if not self._present.issuperset(row):
            self._learn(set(row))
        if self.keys is None or self._reader is None:
            return None
        values, provenance = self._reader.canonical(row)
        anchored = self.keys.anchor is None or self.keys.anchor in row
        self._rows.add(_Step(step, {}, {}, ()), values, provenance, anchored)
        next_step = step + self.logging_steps
        if not self._rows.anchored or self._rollout_of(next_step) == self._rollout_of(step):
            return None
        record, self._rows = self._rows.record(), _Rollout()
        return record

    def _learn(self, keys: set[str]) -> None:
        self._present |= keys
        framework = recognise(self._present)
        self.keys = None if framework is None else key_map(framework, self._present, {})
        self._reader = None if self.keys is None else _Reader(self.keys)

    def state_dict(self) -> dict[str, Any]:
        """The keys seen so far, and the rows of a rollout that is not at its end, as plain values."""
        rows = {name: value for name, value in vars(self._rows).items() if name != "samples"}
        return {"keys": sorted(self._present), "rows": rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self._learn(set(state["keys"]))
        vars(self._rows).update(state["rows"])

    def _rollout_of(self, step: int) -> int:
        return (step - 1) // self.updates_per_rollout


class _Reader:
    """From the keys of a log to canonical names and units."""

    def __init__(self, keys: KeyMap) -> None:
        single = [column for column in keys.columns if len(column.keys) == 1]
        self._single = [(column.name, column.keys[0], column.factor) for column in single]
        self._kinds = [(column.name, column.provenance) for column in single if column.provenance]
        self._means = [column for column in keys.columns if len(column.keys) > 1]
        self._derived = keys.derived

    def canonical(self, row: Mapping[str, float]) -> tuple[dict[str, float], dict[str, str]]:
        """Values and provenance of a row."""
        values = {name: row[key] * factor for name, key, factor in self._single if key in row}
        provenance = {name: kind for name, kind in self._kinds if name in values}
        for name, sources, factor, kind, _ in self._means:
            found = [row[key] for key in sources if key in row]
            if found:
                values[name], provenance[name] = math.fsum(found) / len(found) * factor, kind
        for name, sources, formula, _, kind in self._derived:
            if all(key in row and math.isfinite(row[key]) for key in sources):
                value = formula(*(row[key] for key in sources))
                if value is not None:
                    values[name], provenance[name] = value, kind
        return values, provenance


class _PlainKeys(dict[str, str]):
    def __missing__(self, key: str) -> str:
        self[key] = plain_key(key)
        return self[key]


class _Rollout:
    """Rows of one rollout."""

    def __init__(self) -> None:
        self.step = 0
        self.anchored = False
        self.values: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.provenance: dict[str, str] = {}
        self.samples: tuple[Sample, ...] = ()

    def add(self, row: _Step, values: dict[str, float], provenance: dict[str, str], anchored: bool) -> None:
        if anchored or not self.anchored:
            self.step = row.step
        self.anchored = self.anchored or anchored
        self.provenance |= provenance
        self.samples = row.samples or self.samples
        if not self.values:
            self.values, self.counts = values, dict.fromkeys(values, 1)
            return
        for name, value in values.items():
            count = self.counts.get(name, 0)
            if count == 0 or name in _LATEST:
                self.values[name] = value
            elif name in _MAXIMUM:
                # max() of a NaN and a number depends on their order; the NaN must not get lost.
                both = (value, self.values[name])
                self.values[name] = math.nan if any(map(math.isnan, both)) else max(both)
            else:
                self.values[name] += (value - self.values[name]) / (count + 1)
            self.counts[name] = count + 1

    def record(self) -> Record:
        _convert_kl(self.values, self.provenance)
        return Record(self.step, self.values, self.provenance, self.samples)


def _convert_kl(values: dict[str, float], provenance: dict[str, str]) -> None:
    """KL per sequence from KL per token, or the other way round, where the length is known."""
    length = values.get("len_mean", math.nan)
    if not (math.isfinite(length) and length > 0):
        return
    for missing, known, factor in (("kl_ref_seq", "kl_ref_tok", length), ("kl_ref_tok", "kl_ref_seq", 1 / length)):
        value = values.get(known, math.nan)
        if missing not in values and math.isfinite(value):
            values[missing] = value * factor
            provenance[missing] = "approximate" if provenance.get(known) == "approximate" else "derived"
