"""Who saw which failure, and when: one table over the stored runs of a split."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rlhf_ext.pair_statistics import wilson_interval

from .labels import Label, is_healthy, label
from .recipes import RECIPES
from .stored import read_rows
from .verdicts import READERS, Verdict, load

MODES = {
    "M1": "drift",
    "M2": "collapse",
    "M3": "hacking, with the quality probe",
    "M4": "critic",
    "M5": "no movement",
    "X1": "scores not finite",
    "X2": "sampler does not match",
    "X3": "dropout in the update",
    "X10": "EOS masked",
}
NO_PROBE = "diagnostics without the quality probe"


@dataclass(frozen=True)
class Result:
    """
    A stored run, what happened in it and what each reader said.

    Args:
        recipe (`str`): Its recipe.
        seed (`int`): Its seed.
        labels (`dict[str, Label]`): Failures that the oracle confirms, by mode.
        healthy (`bool`): Whether the oracle calls it healthy.
        rollouts (`int`): Length.
        verdicts (`dict[str, Verdict]`): By reader.
    """

    recipe: str
    seed: int
    labels: dict[str, Label]
    healthy: bool
    rollouts: int
    verdicts: dict[str, Verdict]


def results(folder: Path) -> list[Result]:
    """All runs of a split, read by every reader."""
    return [_result(path.parent) for path in sorted(folder.glob("*/*/records.jsonl.gz"))]


def _result(folder: Path) -> Result:
    recipe, seed = folder.parent.name, int(folder.name)
    outcomes = read_rows(folder / "oracle.jsonl.gz")
    path = folder / "records.jsonl.gz"
    settings, records = load(path)
    verdicts = {name: read(settings, records) for name, read in READERS.items()}
    verdicts[NO_PROBE] = READERS["diagnostics"](*load(path, leave_out=("quality",)))
    labels = {each.mode: each for each in label(outcomes, RECIPES[recipe].intent)}
    return Result(recipe, seed, labels, not labels and is_healthy(outcomes), len(records), verdicts)


def share(successes: int, trials: int) -> str:
    """A proportion with its 95 % Wilson interval."""
    if not trials:
        return "no runs"
    low, high = wilson_interval(successes, trials)
    return f"{successes}/{trials} ({low:.2f} to {high:.2f})"


def recall_table(runs: list[Result]) -> str:
    """One row a mode: how many runs have it, and in how many each reader warned of it."""
    readers = (*READERS, NO_PROBE)
    lines = ["| mode | " + " | ".join(readers) + " |", "|---" * (len(readers) + 1) + "|"]
    for mode, name in MODES.items():
        having = [run for run in runs if mode in run.labels]
        cells = [share(sum(mode in run.verdicts[r].alarms for run in having), len(having)) for r in readers]
        lines.append(f"| {mode} {name} | " + " | ".join(cells) + " |")
    healthy = [run for run in runs if run.healthy]
    for title, count in (("warned of", lambda v: bool(v.alarms)), ("called critical", lambda v: bool(v.critical))):
        cells = [share(_count(healthy, r, count), len(healthy)) for r in readers]
        lines.append(f"| healthy, {title} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _count(runs: list[Result], reader: str, holds: Callable[[Verdict], bool]) -> int:
    return sum(holds(run.verdicts[reader]) for run in runs)


def lead_table(runs: list[Result]) -> str:
    """One row a mode: the lead of the warning over the damage, and the primary mode and cause of the diagnostics."""
    lines = [
        "| mode | warned by anything before the damage | lead, median, share of the run | primary mode | primary cause |",
        "|---|---|---|---|---|",
    ]
    for mode in MODES:
        having = [run for run in runs if mode in run.labels]
        warned = [(run, min(v.alarms.values())) for run in having if (v := run.verdicts["diagnostics"]).alarms]
        leads = [(run.labels[mode].damage - first) / run.rollouts for run, first in warned]
        seen = [run for run, _ in warned]
        primary = sum(run.verdicts["diagnostics"].primary in run.labels for run in seen)
        known = [run for run in seen if RECIPES[run.recipe].causes]
        causes = sum(run.verdicts["diagnostics"].cause in RECIPES[run.recipe].causes for run in known)
        lines.append(
            f"| {mode} | {share(sum(lead > 0 for lead in leads), len(having))} | "
            f"{f'{median(leads):+.2f}' if leads else ''} | {share(primary, len(seen))} | {share(causes, len(known))} |"
        )
    return "\n".join(lines)


def run_table(runs: list[Result]) -> str:
    """One row a run: what happened, what the diagnostics said."""
    lines = ["| recipe | seed | oracle | diagnostics | primary |", "|---|---|---|---|---|"]
    for run in runs:
        happened = ", ".join(f"{m} at {each.damage}" for m, each in run.labels.items())
        verdict = run.verdicts["diagnostics"]
        said = ", ".join(f"{m} at {at}{'!' if m in verdict.critical else ''}" for m, at in verdict.alarms.items())
        lines.append(
            f"| {run.recipe} | {run.seed} | {happened or ('healthy' if run.healthy else 'neither')} | {said} | "
            f"{verdict.primary or ''} {verdict.cause or ''} |"
        )
    return "\n".join(lines)
