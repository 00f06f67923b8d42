"""What `diagnostics.jsonl` has to say on a model card."""

from pathlib import Path

from ..diagnostics import Sample, Severity, diagnose
from ..diagnostics.journal import Told, read_told
from ..diagnostics.report_text import short, when
from ..markdown import block, inline

SHOWN_SAMPLES, SHOWN_FINDINGS = 3, 8


def journal_sections(journal: Path | None) -> list[str]:
    """
    Findings, what was done about them, and samples before and after, as sections of a card.

    Args:
        journal (`Path`, *optional*): `diagnostics.jsonl`, where the run keeps one.
    """
    if journal is None or not journal.is_file():
        return ["## Diagnostics\n\nSwitched off in this run, which also kept no samples."]
    told = read_told(journal)
    return [_findings(journal, told), _samples(told)]


def _findings(journal: Path, told: Told) -> str:
    try:
        diagnosis = diagnose(journal)
    except ValueError:
        # No rollout yet.
        return ""
    lines = []
    for episode in diagnosis.episodes[:SHOWN_FINDINGS]:
        finding = episode.finding
        cure = next((cause.remedy for cause in finding.causes if cause.check != "refuted"), "")
        advice = f" Cure: {inline(cure)}" if cure and finding.severity > Severity.INFO else ""
        lines.append(
            f"- **{finding.severity.name} {inline(finding.mode)} {inline(finding.title)}** ({inline(when(episode))}): "
            f"{inline(finding.summary)}{advice}"
        )
    left = len(diagnosis.episodes) - len(lines)
    lines += [f"- {left} more in `{journal.name}`"] if left else []
    text = "## Findings of the diagnostics\n\n" + ("\n".join(lines) or "None.")
    if told.actions:
        last = [f"- step {a['step']}: {inline(a['action']['lever'])}, {inline(a['result'])}" for a in told.actions]
        text += "\n\nWhat they did about it:\n\n" + "\n".join(last[-SHOWN_FINDINGS:])
    return text


def _samples(told: Told) -> str:
    if not told.before:
        return ""
    if told.same_prompts:
        pairs = list(zip(told.before, told.after, strict=False))[:SHOWN_SAMPLES]
        body = "\n".join(
            f"Prompt:\n{block(before.prompt)}\nBefore{_score(before)}:\n{block(before.completion)}\nAfter{_score(after)}:\n"
            f"{block(after.completion)}"
            for before, after in pairs
        )
        return f"## Samples before and after\n\nHeld-out prompts, the same sampling seed.\n\n{body}"
    ends = {"Before (first rollout, the untrained policy)": told.before, "After (last rollout)": told.after}
    body = "\n\n".join(
        f"### {title}\n\n"
        + "\n".join(
            f"Prompt:\n{block(s.prompt)}\nAnswer{_score(s)}:\n{block(s.completion)}" for s in part[:SHOWN_SAMPLES]
        )
        for title, part in ends.items()
    )
    return (
        "## Samples before and after\n\nTraining prompts, not the same ones; the best by score come first.\n\n" + body
    )


def _score(sample: Sample) -> str:
    return "" if sample.score is None else f" (score {short(sample.score)})"
