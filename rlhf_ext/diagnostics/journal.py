"""
`diagnostics.jsonl`: what the diagnostics of a run were given and what they said, an object a line.

- `{"kind": "settings", ...}`: what was known of the run, the fields of [`RunSettings`]; at every start and resume.
- `{"kind": "rollout", "step": 8, "values": {...}, "provenance": {...}, "samples": [{...}]}`: a [`Record`], canonical
  names and units.
- `{"kind": "probe", "step": 8, "samples": [{...}]}`: answers to the held-out prompts of the probe, the same at each.
- `{"kind": "opened", "step": 8, "finding": {...}}`, likewise `escalated` and `closed`: an [`Event`].
- `{"kind": "action", "step": 8, "action": {...}, "result": "..."}`: an [`Action`] of `diagnostics="act"`, and what came
  of it.

Numbers that are not finite are written as the words NaN, Infinity and -Infinity, so that every line is JSON.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from .finding import Event
from .record import Record, RunSettings, Sample
from .remedies import Action


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


def probe_line(step: int, samples: Iterable[Sample]) -> str:
    """The line of a probe: its first answers, judged or not."""
    return _line({"kind": "probe", "step": step, "samples": [sample._asdict() for sample in samples]})


def event_line(event: Event) -> str:
    """The line of a finding that opened, became worse or closed."""
    return _line({"kind": event.kind, "step": event.step, "finding": event.finding.as_dict()})


def action_line(step: int, action: Action, result: str) -> str:
    """The line of an action: the ledger."""
    return _line({"kind": "action", "step": step, "action": asdict(action), "result": result})


class Told(NamedTuple):
    """
    What a run showed and did.

    Args:
        before, after (`tuple[Sample, ...]`): Completions of its first and of its last rollout, or probe.
        same_prompts (`bool`): Whether they are answers to the same prompts: those of the probe.
        actions (`tuple[dict, ...]`): Lines of actions that hold.
    """

    before: tuple[Sample, ...]
    after: tuple[Sample, ...]
    same_prompts: bool
    actions: tuple[dict[str, Any], ...]


def read_told(path: str | Path) -> Told:
    """
    Samples and actions of a journal. What was written again after a resume, or by a later run in the same folder,
    replaces what came before; a line that a crash cut off is passed over.

    Args:
        path (`str` or `Path`): The file.

    Raises:
        OSError: If it cannot be read.
    """
    kept: dict[str, list[dict[str, Any]]] = {"rollout": [], "probe": [], "action": []}
    reached = -1
    with open(path, encoding="utf-8") as file:
        for line in file:
            try:
                data = json.loads(line)
            except ValueError:
                continue
            if not isinstance(data, dict) or data.get("kind") not in kept:
                continue
            if data["kind"] == "rollout" and data["step"] <= reached:
                for entries in kept.values():
                    entries[:] = [entry for entry in entries if entry["step"] < data["step"]]
            reached = data["step"] if data["kind"] == "rollout" else reached
            kept[data["kind"]].append(data)
            # Only the ends are shown, and a long run has many rollouts.
            for kind in ("rollout", "probe"):
                del kept[kind][1:-1]
    kind = "probe" if len(kept["probe"]) > 1 else "rollout"
    ends = [samples_from(entry["samples"]) for entry in (*kept[kind][:1], *kept[kind][-1:])] or [(), ()]
    return Told(ends[0], ends[1], kind == "probe", tuple(kept["action"]))


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
