"""
`diagnostics.jsonl`: what the diagnostics of a run were given and what they said, an object a line.

- `{"kind": "settings", ...}`: what was known of the run, the fields of [`RunSettings`]; at every start and resume.
- `{"kind": "rollout", "step": 8, "values": {...}, "provenance": {...}, "samples": [{...}]}`: a [`Record`], canonical
  names and units.
- `{"kind": "opened", "step": 8, "finding": {...}}`, likewise `escalated` and `closed`: an [`Event`].
- `{"kind": "action", "step": 8, "action": {...}, "result": "..."}`: an [`Action`] of `diagnostics="act"`, and what came
  of it.

Numbers that are not finite are written as the words NaN, Infinity and -Infinity, so that every line is JSON.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from .finding import Event
from .record import Record, RunSettings, Sample
from .remedies import Action

EVENT_KINDS = ("opened", "escalated", "closed")


def settings_line(settings: RunSettings) -> str:
    """The line that begins a run, or a part of it after a resume."""
    return _line({"kind": "settings"} | asdict(settings))


def record_line(record: Record) -> str:
    """The line of a rollout."""
    return _line(
        {
            "kind": "rollout",
            "step": record.step,
            "values": dict(record.values),
            "provenance": dict(record.provenance),
            "samples": [sample._asdict() for sample in record.samples],
        }
    )


def event_line(event: Event) -> str:
    """The line of a finding that opened, became worse or closed."""
    return _line({"kind": event.kind, "step": event.step, "finding": event.finding.as_dict()})


def action_line(step: int, action: Action, result: str) -> str:
    """The line of an action: the ledger."""
    return _line({"kind": "action", "step": step, "action": asdict(action), "result": result})


def samples_from(data: Any) -> tuple[Sample, ...]:
    """The completions on a line of a rollout."""
    return tuple(Sample(entry["prompt"], entry["completion"], entry["score"]) for entry in data)


def plain(value: Any) -> Any:
    """`value` with words for the numbers that JSON has not."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _line(data: dict[str, Any]) -> str:
    return json.dumps(plain(data), allow_nan=False, ensure_ascii=False) + "\n"
