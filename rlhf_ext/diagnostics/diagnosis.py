"""Diagnosis of a finished run, whoever logged it."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from .engine import Diagnostics
from .finding import Event, Finding, Severity
from .formats import Source, open_log
from .journal import plain
from .mapping import KeyMap, map_keys
from .record import METRICS, Record, RunSettings
from .report_html import as_html
from .report_text import as_text
from .rollouts import records
from .run_config import settings_from
from .survey import Segment, Survey, survey

# Points of a curve: twice as many as a plot has pixels to show.
_BUCKETS = 400


class Episode(NamedTuple):
    """
    A finding from its opening to its end.

    Args:
        finding ([`Finding`]): As it was at its worst.
        opened (`int`): Step.
        closed (`int`, *optional*): Step; `None` if it was open when the log ended.
        follows (`str`, *optional*): Mode of the finding that this one is a consequence of.
    """

    finding: Finding
    opened: int
    closed: int | None
    follows: str | None = None


class MappedKey(NamedTuple):
    """A canonical metric of the log: its unit, where it comes from, and how far it can be trusted."""

    name: str
    unit: str
    source: str
    provenance: str
    reason: str


class Curve(NamedTuple):
    """Steps and values of a metric; of a long run the lowest and highest value of each stretch."""

    steps: list[int]
    values: list[float]


@dataclass(frozen=True)
class Diagnosis:
    """
    What the log of a run says.

    Args:
        path (`str`): The log.
        kind (`str`): Its format.
        framework (`str`): Who logged it.
        rollouts (`int`): Records in it.
        first_step, last_step (`int`): Steps they cover.
        segments (`tuple[Segment]`): Parts of the run, one more for each resume.
        episodes (`tuple[Episode]`):
            What was found, the worst first and each before its consequences; open at the end before closed.
        events (`tuple[Event]`): The same in the order of time.
        abstentions (`dict[str, tuple[str, ...]]`): Mode or rule -> what it would have needed.
        mapping (`tuple[MappedKey]`): Metrics that were read.
        unused (`dict[str, str]`): Keys that are known and left out -> why.
        unmapped (`tuple[str]`): Keys that mean nothing here.
        settings ([`RunSettings`]): What was known of the run.
        notes (`tuple[str]`): What one should know of this log.
        curves (`dict[str, Curve]`): Metric -> its course.
    """

    path: str
    kind: str
    framework: str
    rollouts: int
    first_step: int
    last_step: int
    segments: tuple[Segment, ...]
    episodes: tuple[Episode, ...]
    events: tuple[Event, ...]
    abstentions: Mapping[str, tuple[str, ...]]
    mapping: tuple[MappedKey, ...]
    unused: Mapping[str, str]
    unmapped: tuple[str, ...]
    settings: RunSettings
    notes: tuple[str, ...]
    curves: Mapping[str, Curve]

    @property
    def worst(self) -> Severity | None:
        """Severity of the worst finding, `None` if there is none."""
        return max((episode.finding.severity for episode in self.episodes), default=None)

    def to_json(self) -> str:
        """Everything but the curves, as JSON; numbers that are not finite are words."""
        data = {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name != "curves"}
        data["worst"] = self.worst.name if self.worst else None
        data["settings"] = dataclasses.asdict(self.settings)
        data["segments"] = [segment._asdict() for segment in self.segments]
        data["mapping"] = [key._asdict() for key in self.mapping]
        data["events"] = [{"kind": e.kind, "step": e.step, "finding": e.finding.as_dict()} for e in self.events]
        data["episodes"] = [
            {"opened": e.opened, "closed": e.closed, "follows": e.follows, "finding": e.finding.as_dict()}
            for e in self.episodes
        ]
        return json.dumps(plain(data), indent=2, ensure_ascii=False, allow_nan=False)

    def to_text(self) -> str:
        """For a terminal."""
        return as_text(self)

    def to_html(self) -> str:
        """One page that needs nothing else, with plots on which the findings are marked."""
        return as_html(self)


def diagnose(
    path: str | Path,
    settings: RunSettings | None = None,
    *,
    keys: Mapping[str, str] | None = None,
    run: str | None = None,
) -> Diagnosis:
    """
    Read the log of a run and say what went wrong, why, and what to change.

    Reads transformers' `trainer_state.json`, our `diagnostics.jsonl`, any JSONL or CSV, TensorBoard event files, files and
    exports of W&B, trackio's project files, and console and file logs of verl; logged by TRL's PPO of both eras, GRPO
    and RLOO, OpenRLHF, verl and others. Needs neither torch nor the trackers, and memory for one row at a time.

    Args:
        path (`str` or `Path`):
            A file, or a folder that holds one.
        settings ([`RunSettings`], *optional*):
            What the log does not say, such as the target of the KL controller. Wins over what the log says.
        keys (`dict[str, str]`, *optional*):
            Canonical name -> key of the log, for frameworks that are not known and keys that are called otherwise.
        run (`str`, *optional*):
            Which run, where the log holds several.

    Returns:
        [`Diagnosis`]

    Raises:
        OSError: If there is no such file.
        ValueError: If it is no log, or one without rows, or its keys are unknown.
    """
    source = open_log(path, run)
    found = survey(source, str(path))
    mapped = map_keys(found, source, keys or {}, str(path))
    counted = found.counts_of(mapped.anchor)
    engine = Diagnostics(_settings(source, counted, settings or RunSettings()))
    curves = _Curves(counted)
    events = _watch(records(source, found, mapped), engine, curves)
    if not curves.rollouts:
        raise ValueError(f"{path} ({source.kind}) has the keys of {mapped.framework.name}, but no row with a value.")
    return Diagnosis(
        path=str(path),
        kind=source.kind,
        framework=mapped.framework.name,
        rollouts=curves.rollouts,
        first_step=curves.first_step,
        last_step=curves.last_step,
        segments=found.segments,
        episodes=_episodes(events, engine.groups),
        events=tuple(events),
        abstentions={mode: tuple(missing) for mode, missing in engine.abstentions.items()},
        mapping=_mapping(mapped, curves),
        unused=mapped.unused,
        unmapped=mapped.unmapped,
        settings=engine.settings,
        notes=(*_notes_on_steps(found), *mapped.framework.notes, *source.notes),
        curves=curves.curves(),
    )


def _watch(rollouts: Iterable[Record], engine: Diagnostics, curves: "_Curves") -> list[Event]:
    events: list[Event] = []
    for record in rollouts:
        events += engine.observe(record)
        curves.add(record)
    return events


def _settings(source: Source, counted: int, given: RunSettings) -> RunSettings:
    """What the user says, before what the log says; a run is taken to be as long as its log."""
    known = {"planned_rollouts": counted} | settings_from(source.config)
    said = {name: value for name, value in dataclasses.asdict(given).items() if value is not None}
    return replace(RunSettings(), **(known | said))


def _episodes(events: list[Event], groups: list[tuple[Finding, ...]]) -> tuple[Episode, ...]:
    """A mode has one finding at a time, so that its events follow one another: opened, escalated, closed."""
    going: dict[str, Episode] = {}
    ended: list[tuple[Episode, ...]] = []
    for event in events:
        mode = event.finding.mode
        if event.kind == "closed":
            ended.append((going.pop(mode)._replace(closed=event.step),))
        else:
            opened = going[mode].opened if mode in going else event.step
            going[mode] = Episode(event.finding, opened, None)
    still_open = [
        tuple(going[f.mode]._replace(follows=None if f is group[0] else group[0].mode) for f in group)
        for group in groups
    ]
    # A run that is over is read for its worst failure first.
    ranked = sorted([*still_open, *ended], key=lambda group: -max(episode.finding.severity for episode in group))
    return tuple(episode for group in ranked for episode in group)


def _mapping(keys: KeyMap, curves: "_Curves") -> tuple[MappedKey, ...]:
    rows = [MappedKey(c.name, METRICS[c.name].unit, ", ".join(c.keys), c.provenance, c.reason) for c in keys.columns]
    rows += [MappedKey(d.name, METRICS[d.name].unit, ", ".join(d.keys), d.provenance, d.reason) for d in keys.derived]
    named = {row.name for row in rows}
    # A journal says of each row how far it can be trusted.
    rows = [
        row if row.provenance else row._replace(provenance=curves.provenance.get(row.name, "exact")) for row in rows
    ]
    for name, other in (("kl_ref_seq", "kl_ref_tok"), ("kl_ref_tok", "kl_ref_seq")):
        if name in curves.provenance and name not in named:
            how = "times" if name == "kl_ref_seq" else "by"
            rows.append(
                MappedKey(name, METRICS[name].unit, other, curves.provenance[name], f"{other} {how} the mean length")
            )
    order = list(METRICS)
    return tuple(sorted(rows, key=lambda row: order.index(row.name)))


def _notes_on_steps(found: Survey) -> list[str]:
    notes = []
    if found.step_key is None:
        notes.append("No key says the step: rows are numbered instead.")
    for before, after in pairwise(found.segments):
        notes.append(
            f"Steps go back from {before.last_step} to {after.first_step}: taken for a resume. {before.replaced} rows "
            "that were logged again are read from the later part."
        )
    return notes if len(notes) <= 5 else [*notes[:4], f"... and {len(notes) - 4} more times."]


class _Curves:
    """Courses of all metrics, in bounded memory."""

    def __init__(self, expected: int) -> None:
        self.rollouts = 0
        self.first_step = self.last_step = 0
        self.provenance: dict[str, str] = {}
        self._width = max(1, math.ceil(expected / _BUCKETS))
        self._recent: list[tuple[int, Mapping[str, float]]] = []
        self._kept: dict[str, Curve] = {}

    def add(self, record: Record) -> None:
        self.first_step = record.step if not self.rollouts else self.first_step
        self.last_step = record.step
        self.rollouts += 1
        self.provenance.update(record.provenance)
        self._recent.append((record.step, record.values))
        if self.rollouts % self._width == 0:
            self._flush()

    def _flush(self) -> None:
        for name in {name: None for _, row in self._recent for name in row}:
            points = [(step, row[name]) for step, row in self._recent if name in row]
            kept = self._kept.setdefault(name, Curve([], []))
            for place in _extremes([value for _, value in points]):
                kept.steps.append(points[place][0])
                kept.values.append(points[place][1])
        self._recent.clear()

    def curves(self) -> dict[str, Curve]:
        """Metric -> curve, in the order of `METRICS`."""
        self._flush()
        return {name: self._kept[name] for name in METRICS if name in self._kept}


def _extremes(values: list[float]) -> list[int]:
    """Places of the lowest and the highest value, and of the first that is not finite."""
    if len(values) < 3:
        return list(range(len(values)))
    finite, places = values, set()
    # The sum of finite numbers is one, unless they are huge.
    if not math.isfinite(sum(values)):
        finite = [value for value in values if math.isfinite(value)]
        places = set([place for place, value in enumerate(values) if not math.isfinite(value)][:1])
    if finite:
        places |= {values.index(min(finite)), values.index(max(finite))}
    return sorted(places)
