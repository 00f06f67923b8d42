"""Who saw which failure, and when: one table over the stored runs of a split."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from rlhf_ext.pair_statistics import wilson_interval

from .bound import bound_table
from .calibrate import calibration, calibration_table
from .labels import Label, critic_is_measured, is_healthy, label
from .recipes import RECIPES
from .replay import committed
from .stored import read_rows
from .verdicts import READERS, WITHOUT_RULE, Verdict, load

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
    "X14": "scores all the same",
}
NO_PROBE = "diagnostics without the quality probe"
BUGS = tuple(mode for mode in MODES if mode.startswith("X"))
# The rules of explained variance are a detector of their own, and name the same failure.
SAME = {"M4": ("M4", "X7")}


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
    healthy = not labels and is_healthy(outcomes, critic_is_measured(recipe))
    return Result(recipe, seed, labels, healthy, len(records), verdicts)


def share(successes: int, trials: int) -> str:
    """A proportion with its 95 % Wilson interval."""
    if not trials:
        return "no runs"
    low, high = wilson_interval(successes, trials)
    return f"{successes}/{trials} ({low:.2f} to {high:.2f})"


def recall_table(runs: list[Result]) -> str:
    """One row a mode: how many runs have it, and in how many each reader warned of it; then false alarms."""
    readers = (*READERS, NO_PROBE)
    lines = ["| runs | " + " | ".join(readers) + " |", "|---" * (len(readers) + 1) + "|"]

    def add(title: str, chosen: list[Result], holds: Callable[[Verdict], bool], mode: str = "") -> None:
        cells = [
            "no rule"
            if mode in WITHOUT_RULE.get(reader, ())
            else share(sum(holds(run.verdicts[reader]) for run in chosen), len(chosen))
            for reader in readers
        ]
        lines.append(f"| {title} | " + " | ".join(cells) + " |")

    for mode, name in MODES.items():
        having = [run for run in runs if mode in run.labels]
        if having:
            add(f"{mode} {name}", having, lambda v, mode=mode: warned(v, mode), mode)  # type: ignore[misc]
    healthy = [run for run in runs if run.healthy]
    plain = [run for run in healthy if RECIPES[run.recipe].intent == "healthy"]
    hard = [run for run in healthy if RECIPES[run.recipe].intent == "hard-negative"]
    add("healthy, any warning", healthy, lambda v: bool(v.alarms))
    add("of these plain", plain, lambda v: bool(v.alarms))
    add("of these hard negatives", hard, lambda v: bool(v.alarms))
    add("healthy, anything critical", healthy, lambda v: bool(v.critical))
    sound = [run for run in runs if not any(bug in run.labels for bug in BUGS)]
    # Completions that are cut off (X10) are there to be counted, and often are where a reward is hacked.
    add("without a bug, warned of X1 to X3", sound, lambda v: any(bug in v.alarms for bug in ("X1", "X2", "X3")))
    return "\n".join(lines)


def _names(modes: Iterable[str]) -> set[str]:
    return {name for mode in modes for name in SAME.get(mode, (mode,))}


def warned(verdict: Verdict, mode: str) -> bool:
    """Whether a reader warned of the mode."""
    return not _names([mode]).isdisjoint(verdict.alarms)


def lead_table(runs: list[Result]) -> str:
    """One row a mode: the lead of the warning over the damage, and the primary mode and cause of the diagnostics."""
    lines = [
        "| mode | warned by anything before the damage | lead, median, share of the run | primary mode | primary cause |",
        "|---|---|---|---|---|",
    ]
    for mode in MODES:
        having = [run for run in runs if mode in run.labels]
        if not having:
            continue
        warned = [(run, min(v.alarms.values())) for run in having if (v := run.verdicts["diagnostics"]).alarms]
        leads = [(run.labels[mode].damage - first) / run.rollouts for run, first in warned]
        seen = [run for run, _ in warned]
        primary = sum(run.verdicts["diagnostics"].primary in _names(run.labels) for run in seen)
        known = [run for run in seen if RECIPES[run.recipe].causes]
        causes = sum(run.verdicts["diagnostics"].cause in RECIPES[run.recipe].causes for run in known)
        lines.append(
            f"| {mode} | {share(sum(lead > 0 for lead in leads), len(having))} | "
            f"{f'{median(leads):+.2f}' if leads else ''} | {share(primary, len(seen))} | {share(causes, len(known))} |"
        )
    return "\n".join(lines)


def outcome_table(runs: list[Result]) -> str:
    """One row a recipe: what the oracle saw in its runs."""
    lines = ["| recipe | meant to be | runs | the oracle saw |", "|---|---|---|---|"]
    for name, recipe in RECIPES.items():
        own = [run for run in runs if run.recipe == name]
        if not own:
            continue
        seen = Counter(mode for run in own for mode in _outcome(run))
        told = ", ".join(f"{mode} {count}" for mode, count in seen.most_common())
        lines.append(f"| {name} | {recipe.intent} | {len(own)} | {told} |")
    return "\n".join(lines)


def _outcome(run: Result) -> list[str]:
    return list(run.labels) or ["healthy" if run.healthy else "neither"]


def page(folder: Path) -> str:
    """The tables of both halves."""
    parts = []
    for split, title in (("test", "Test half (seeds from 10)"), ("tune", "Tune half (seeds below 10)")):
        runs = results(folder / split)
        parts += [f"### {title}: {len(runs)} runs", recall_table(runs), lead_table(runs)]
    counts = calibration(folder / "tune", committed("tune"))
    parts += ["### How early the gold score alone could tell of hacking, tune half", bound_table(folder / "tune")]
    parts += ["### What findings of the tune half were worth", calibration_table(counts)]
    everything = results(folder / "tune") + results(folder / "test")
    from .lint import lint_table  # Imports the trainer.

    parts += ["### Settings, before the runs", lint_table()]
    return "\n\n".join([*parts, "### What became of the recipes", outcome_table(everything)])


def demo_page(folder: Path) -> str:
    """The tables of the second world, which no threshold was fitted to."""
    runs = results(folder / "demo")
    parts = [recall_table(runs), lead_table(runs), outcome_table(runs), run_table(runs)]
    return "\n\n".join([f"### Second world: SmolLM2-135M: {len(runs)} runs", *parts])


def run_table(runs: list[Result]) -> str:
    """One row a run: what happened, what the diagnostics said."""
    lines = ["| recipe | seed | oracle | diagnostics | primary |", "|---|---|---|---|---|"]
    for run in runs:
        happened = ", ".join(f"{m} at {each.damage}" for m, each in run.labels.items()) or _outcome(run)[0]
        verdict = run.verdicts["diagnostics"]
        said = ", ".join(f"{m} at {at}{'!' if m in verdict.critical else ''}" for m, at in verdict.alarms.items())
        lines.append(
            f"| {run.recipe} | {run.seed} | {happened} | {said} | {verdict.primary or ''} {verdict.cause or ''} |"
        )
    return "\n".join(lines)
