"""A diagnosis as one HTML page, which loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from .finding import Cause, Evidence
from .plots import Mark, plot
from .record import METRICS, Sample
from .report_text import SHOWN_IN_FULL, short, when

if TYPE_CHECKING:
    from .diagnosis import Diagnosis, Episode

_CHECKS = {"confirmed": "confirmed by the log", "open": "not decided by the log", "refuted": "ruled out by the log"}
_VERDICTS = {
    None: ("ok", "No finding"),
    "INFO": ("info", "Worth knowing"),
    "WARN": ("warn", "Act soon"),
    "CRITICAL": ("critical", "The run is being destroyed, or was"),
}


def as_html(diagnosis: Diagnosis) -> str:
    """Verdict, findings with their curves, all curves, what was missing, how the log was read."""
    style = files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    body = [
        _head(diagnosis),
        *(_episode(diagnosis, episode) for episode in diagnosis.episodes[:SHOWN_IN_FULL]),
        _further(diagnosis.episodes[SHOWN_IN_FULL:]),
        _curves(diagnosis),
        _missing(diagnosis),
        _reading(diagnosis),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Diagnosis of {escape(diagnosis.path)}</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(body)}</main></body></html>\n"
    )


def _head(diagnosis: Diagnosis) -> str:
    worst = diagnosis.worst
    kind, verdict = _VERDICTS[worst.name if worst else None]
    if diagnosis.episodes:
        worst_title = next(e.finding.title for e in diagnosis.episodes if e.finding.severity == worst)
        verdict = f"{verdict}: {worst_title}"
    elif diagnosis.abstentions:
        verdict = f"{verdict} in what could be judged"
    facts = {
        "format": diagnosis.kind,
        "logged by": diagnosis.framework,
        "rollouts": str(diagnosis.rollouts),
        "steps": f"{diagnosis.first_step} to {diagnosis.last_step}",
        "findings": str(len(diagnosis.episodes)),
    }
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        f'<header><h1>Diagnosis of a run</h1><p class="path">{escape(diagnosis.path)}</p>'
        f'<p class="verdict {kind}">{escape(verdict)}</p><dl class="facts">{rows}</dl></header>'
    )


def _episode(diagnosis: Diagnosis, episode: Episode) -> str:
    finding = episode.finding
    kind = finding.severity.name.lower()
    title = finding.title[:1].upper() + finding.title[1:]
    metrics = dict.fromkeys(evidence.metric for evidence in finding.evidence)
    plots = "".join(_figure(diagnosis, name) for name in metrics if name in diagnosis.curves)
    return (
        f'<section class="finding {kind}"><h2><span class="badge {kind}">{finding.severity.name}</span>'
        f"{escape(title)} <small>{escape(finding.mode)}</small></h2>"
        f'<p class="when">{escape(when(episode))}.</p><p>{escape(finding.summary)}</p>'
        f'<p class="when">{escape(str(finding.confidence or ""))}</p>'
        f"{_evidence(finding.evidence)}"
        f'<div class="plots">{plots}</div>{_causes(finding.causes)}{_samples(finding.samples)}</section>'
    )


def _further(episodes: Sequence[Episode]) -> str:
    if not episodes:
        return ""
    rows = [(e.finding.severity.name, e.finding.mode, e.finding.title, when(e), e.finding.summary) for e in episodes]
    return (
        f"<section><h2>Further findings</h2>{_table(('severity', 'mode', 'finding', 'when', 'what'), rows)}</section>"
    )


def _evidence(evidence: Iterable[Evidence]) -> str:
    rows = [
        (e.metric, short(e.before), short(e.after), e.unit, f"{e.first_step} to {e.last_step}", e.statistic)
        for e in evidence
    ]
    return _table(("evidence", "before", "after", "unit", "steps", "test"), rows)


def _causes(causes: Iterable[Cause]) -> str:
    items = "".join(
        f'<li class="{cause.check}"><p><strong>{escape(cause.why)}</strong> <span class="check">'
        f"{_CHECKS[cause.check]}</span></p><p>{escape(cause.how)}</p>"
        + (f'<p class="cure">{escape(cause.remedy)}</p>' if cause.check != "refuted" else "")
        + "</li>"
        for cause in causes
    )
    return f'<h3>Causes and cures</h3><ol class="causes">{items}</ol>' if items else ""


def _samples(samples: Iterable[Sample]) -> str:
    items = "".join(
        f'<div class="sample"><p class="score">{"" if s.score is None else f"score {short(s.score)}"}</p>'
        f'<pre class="prompt">{escape(s.prompt)}</pre><pre>{escape(s.completion)}</pre></div>'
        for s in samples
    )
    return f"<details open><summary>Completions at the time</summary>{items}</details>" if items else ""


def _curves(diagnosis: Diagnosis) -> str:
    figures = "".join(_figure(diagnosis, name) for name in diagnosis.curves)
    return f'<section><h2>Curves</h2><div class="plots">{figures}</div></section>'


def _figure(diagnosis: Diagnosis, name: str) -> str:
    metric = METRICS[name]
    marks = [
        Mark(
            episode.finding.mode,
            f"{episode.finding.severity.name} {episode.finding.mode}: {episode.finding.title}, from {episode.opened}",
            episode.finding.severity.name,
            episode.opened,
            diagnosis.last_step if episode.closed is None else episode.closed,
        )
        for episode in reversed(diagnosis.episodes)
        if any(evidence.metric == name for evidence in episode.finding.evidence)
    ]
    unit = "" if metric.unit == "1" else f", {metric.unit}"
    target = diagnosis.settings.kl_target if _has_target(diagnosis, name) else None
    curve = plot(*diagnosis.curves[name], marks, target, f"{name} over steps")
    return (
        f"<figure><figcaption><code>{name}</code>{escape(unit)}<br><small>{escape(metric.meaning)}</small>"
        f"</figcaption>{curve}</figure>"
    )


def _has_target(diagnosis: Diagnosis, name: str) -> bool:
    return (name, diagnosis.settings.kl_unit) in (("kl_ref_seq", "sequence"), ("kl_ref_tok", "token"))


def _missing(diagnosis: Diagnosis) -> str:
    if not diagnosis.abstentions:
        return ""
    rows = [(mode, ", ".join(names)) for mode, names in diagnosis.abstentions.items()]
    return f"<section><h2>Not judged</h2>{_table(('rule', 'would need'), rows)}</section>"


def _reading(diagnosis: Diagnosis) -> str:
    mapping = [(k.name, k.source, k.unit, k.provenance, k.reason) for k in diagnosis.mapping]
    settings = [(name, str(value)) for name, value in asdict(diagnosis.settings).items() if value is not None]
    notes = "".join(f"<li>{escape(note)}</li>" for note in diagnosis.notes)
    unmapped = f"<p>Not known here: {escape(', '.join(diagnosis.unmapped))}</p>" if diagnosis.unmapped else ""
    return (
        "<section><h2>How the log was read</h2>"
        + _table(("metric", "key of the log", "unit", "trust", "why"), mapping)
        + _table(("left out", "why"), list(diagnosis.unused.items()))
        + unmapped
        + (f"<ul>{notes}</ul>" if notes else "")
        + _table(("setting", "value"), settings)
        + "</section>"
    )


def _table(header: Iterable[str], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
