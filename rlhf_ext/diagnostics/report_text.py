"""A diagnosis for the terminal."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from .finding import Cause, Evidence
from .record import METRICS, Sample

if TYPE_CHECKING:
    from .diagnosis import Diagnosis, Episode

_WIDTH = 100
_MARKS = {"confirmed": "[yes]", "open": "[ ? ]", "refuted": "[no] "}
# A run that fails in many ways is read by its first findings; the others get a line.
SHOWN_IN_FULL = 8
# Enough to see what a completion is like.
_SAMPLE_CHARACTERS = 240


def as_text(diagnosis: Diagnosis) -> str:
    """Findings first, the primary one foremost; then what could not be judged, and how the log was read."""
    parts = [_head(diagnosis)]
    parts += [_episode(episode) for episode in diagnosis.episodes[:SHOWN_IN_FULL]]
    if len(diagnosis.episodes) > SHOWN_IN_FULL:
        parts.append("\n".join(map(_title, diagnosis.episodes[SHOWN_IN_FULL:])))
    if not diagnosis.episodes:
        parts.append("No finding.")
    parts += [_missing(diagnosis), _reading(diagnosis)]
    return "\n\n".join(part for part in parts if part) + "\n"


def short(value: float | None) -> str:
    """Four digits, `-` for none."""
    return "-" if value is None else f"{value:.4g}"


def evidence_line(evidence: Evidence) -> str:
    """A number that moved, in a line."""
    values = f"{short(evidence.before)} -> {short(evidence.after)}" if evidence.before is not None else None
    unit = "" if evidence.unit == "1" else f" {evidence.unit}"
    return (
        f"{evidence.metric}: {values or short(evidence.after)}{unit}, steps {evidence.first_step} to "
        f"{evidence.last_step} ({evidence.statistic})"
    )


def _head(diagnosis: Diagnosis) -> str:
    steps = f"steps {diagnosis.first_step} to {diagnosis.last_step}"
    count = f"{diagnosis.rollouts} rollout{'' if diagnosis.rollouts == 1 else 's'}"
    return f"{diagnosis.path}\n{diagnosis.kind}, logged by {diagnosis.framework}: {count}, {steps}."


def when(episode: Episode) -> str:
    """When it was open, and what it follows from."""
    end = "open at the end" if episode.closed is None else f"closed at step {episode.closed}"
    follows = f", a consequence of {episode.follows}" if episode.follows else ""
    return f"from step {episode.opened}, {end}{follows}"


def _title(episode: Episode) -> str:
    finding = episode.finding
    return f"{finding.severity.name} {finding.mode}: {finding.title} ({when(episode)})"


def _episode(episode: Episode) -> str:
    finding = episode.finding
    lines = [_title(episode), *_wrap(finding.summary, "  ")]
    if finding.confidence is not None:
        lines += _wrap(str(finding.confidence), "  ")
    lines += [f"    {evidence_line(evidence)}" for evidence in finding.evidence]
    if finding.causes:
        lines.append("  Causes:")
        lines += [line for cause in finding.causes for line in _cause(cause)]
    lines += [line for sample in finding.samples[:2] for line in _sample(sample)]
    return "\n".join(lines)


def _cause(cause: Cause) -> list[str]:
    lines = _wrap(f"{_MARKS[cause.check]} {cause.why}", "    ")
    lines += _wrap(cause.how, "          ")
    return lines if cause.check == "refuted" else [*lines, *_wrap(f"Cure: {cause.remedy}", "          ")]


def _sample(sample: Sample) -> list[str]:
    score = "" if sample.score is None else f" (score {short(sample.score)})"
    text = f"{sample.prompt[-_SAMPLE_CHARACTERS // 2 :]!r} -> {sample.completion[:_SAMPLE_CHARACTERS]!r}"
    return _wrap(f"Sample{score}: {text}", "  ")


def _missing(diagnosis: Diagnosis) -> str:
    if not diagnosis.abstentions:
        return ""
    lines = ["Not judged, since the log lacks:"]
    for mode, names in diagnosis.abstentions.items():
        lines += _wrap(f"{mode}: {', '.join(names)}", "  ")
    return "\n".join(lines)


def _reading(diagnosis: Diagnosis) -> str:
    lines = ["How the log was read:"]
    width = max((len(key.name) for key in diagnosis.mapping), default=0)
    same = [key.name for key in diagnosis.mapping if key.source == key.name and key.provenance == "exact"]
    if same:
        lines += _wrap(f"under their own names: {', '.join(same)}", "  ")
    for key in diagnosis.mapping:
        if key.name in same:
            continue
        doubt = f"  [{key.provenance}{': ' + key.reason if key.reason else ''}]" if key.provenance != "exact" else ""
        unit = "" if METRICS[key.name].unit == "1" else f" ({key.unit})"
        lines.append(f"  {key.name:<{width}} <- {key.source}{unit}{doubt}")
    lines += [line for key, why in diagnosis.unused.items() for line in _wrap(f"left out {key}: {why}", "  ")]
    if diagnosis.unmapped:
        lines += _wrap(f"not known here: {', '.join(diagnosis.unmapped)}", "  ")
    lines += [line for note in diagnosis.notes for line in _wrap(f"Note: {note}", "  ")]
    return "\n".join(lines)


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}  ", break_long_words=False)
