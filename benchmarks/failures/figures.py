"""Plots of one stored run for each mode: the curves that name it, what the diagnostics said and what the oracle saw."""

import math
from pathlib import Path
from typing import NamedTuple

from rlhf_ext.diagnostics.plots import Mark, image, plot

from .labels import Label, label
from .recipes import RECIPES
from .stored import RUNS, read_rows
from .table import warned
from .verdicts import Verdict, diagnose, load

STYLE = """.oracle .band { fill: #2e8b57; } .oracle .edge { stroke: #2e8b57; } .oracle .mark { fill: #2e8b57; }
"""


class Figure(NamedTuple):
    """A run of the tune half: its recipe, and the curves from its records and from the oracle that tell what happened."""

    recipe: str
    curves: tuple[str, ...]
    outcomes: tuple[str, ...] = ()


FIGURES = {
    "M1": Figure("drift-shuffled", ("kl_ref_seq", "score_mean"), ("gold",)),
    "M2": Figure("collapse-brevity", ("entropy_tok", "dup_frac", "score_mean"), ("duplicates",)),
    "M3": Figure("hack-keywords", ("score_mean", "quality", "kl_ref_seq"), ("gold",)),
    "M4": Figure("critic-rate", ("value_loss", "explained_var"), ("mc_r2",)),
    "M5": Figure("still-beta", ("kl_ref_seq", "score_mean"), ("gold",)),
    "X1": Figure("bug-nan", ("score_mean", "nonfinite")),
    "X2": Figure("bug-sampling", ("kl_ref_seq", "kl_ref_k3")),
    "X3": Figure("bug-dropout", ("ratio_first_dev", "kl_update")),
    "X6": Figure("collapse-rate", ("kl_update", "pg_clipfrac", "entropy_tok")),
    "X7": Figure("critic-cold", ("explained_var", "value_loss")),
    "X9": Figure("critic-cold", ("len_mean", "score_mean")),
    "X10": Figure("bug-eos", ("trunc_rate", "len_mean")),
    "X11": Figure("hack-wordy-model", ("rep4", "len_mean")),
    "X12": Figure("critic-scale", ("score_std", "value_loss")),
    "X13": Figure("drift-stuck", ("score_std", "kl_ref_seq")),
    "X14": Figure("drift-stuck", ("score_std", "adv_std", "grad_norm")),
    "X15": Figure("critic-scale", ("grad_norm", "score_std")),
    "X16": Figure("bug-eos", ("beta", "kl_ref_seq")),
}
"""Of X4, X5 and X8 no run is stored; X17 comes before a run."""
TITLES = {
    "kl_ref_seq": "KL to the reference, nats per sequence",
    "score_mean": "mean score by the reward of the run",
    "entropy_tok": "entropy, nats per token",
    "dup_frac": "share of completions that stand under another prompt too",
    "quality": "held-out quality, the probe",
    "value_loss": "value loss",
    "explained_var": "explained variance",
    "nonfinite": "numbers of the rollout that are not finite",
    "kl_ref_k3": "the same KL by the estimator k3",
    "ratio_first_dev": "largest distance of the ratio from 1 before any update",
    "kl_update": "KL of the update, nats per token",
    "pg_clipfrac": "share of clipped ratios",
    "len_mean": "mean length, tokens",
    "trunc_rate": "share of completions that are cut off",
    "rep4": "share of repeated word 4-grams",
    "score_std": "spread of the scores",
    "adv_std": "spread of the advantages",
    "grad_norm": "norm of the gradient before clipping",
    "beta": "beta",
    "duplicates": "oracle: share of notes that stand under another request too",
    "gold": "oracle: gold score on held-out requests",
    "mc_r2": "oracle: share of the variance of true returns that the critic explains",
}


def draw(mode: str) -> str:
    """The figure of a mode as an SVG image; rollouts to the right."""
    figure = FIGURES[mode]
    folder = RUNS / "tune" / figure.recipe / "0"
    settings, records = load(folder / "records.jsonl.gz")
    outcomes = [row for row in read_rows(folder / "oracle.jsonl.gz") if "gold" in row]
    verdict = diagnose(settings, records)
    said = _finding(mode, verdict, len(records))
    panels = []
    for name in figure.curves:
        points = [(i, value) for i, record in enumerate(records, 1) if (value := record.values.get(name)) is not None]
        target = settings.kl_target if name == "kl_ref_seq" else None
        panels.append((TITLES[name], points, said, target))
    if figure.outcomes:
        happened = next(each for each in label(outcomes, RECIPES[figure.recipe].intent) if each.mode == mode)
        seen = [_damage(happened)]
        panels += [(TITLES[n], [(row["rollout"], row[n]) for row in outcomes], seen, None) for n in figure.outcomes]
    return _stack(panels)


def _finding(mode: str, verdict: Verdict, end: int) -> list[Mark]:
    if not warned(verdict, mode):
        return []
    first = min(at for name, at in verdict.alarms.items() if warned(Verdict({name: at}), mode))
    severity = "critical" if mode in verdict.critical else "warn"
    return [Mark(f"{mode} from rollout {first}", "warning of the diagnostics", severity, first, end)]


def _damage(happened: Label) -> Mark:
    told = f"begins at {happened.onset}, damage at {happened.damage}"
    return Mark(told, told, "oracle", happened.onset, happened.damage)


def _stack(panels: list[tuple[str, list[tuple[int, float]], list[Mark], float | None]]) -> str:
    plots = {}
    for title, points, marks, target in panels:
        steps, values = zip(*[(step, value) for step, value in points if not math.isnan(value)], strict=True)
        plots[title] = plot(steps, values, marks, target, title)
    return image(plots, style=STYLE)


def write_figures(folder: Path) -> None:
    """Write one image a mode."""
    folder.mkdir(parents=True, exist_ok=True)
    for mode in FIGURES:
        (folder / f"{mode}.svg").write_text(draw(mode), encoding="utf-8")
