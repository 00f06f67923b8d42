"""What `diagnostics="act"` saves, and what it costs: runs beside the same runs without it."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rlhf_ext.pair_statistics import wilson_interval

from .labels import GOLD_DROP, WORSE_THAN_A_CONSTANT, is_healthy, label
from .recipes import RECIPES
from .stored import RUNS, folder_of, read_rows

SAVED_MODES = {"M1": "drift", "M4": "critic"}

Rows = list[dict[str, Any]]


def is_compared(folder: Path) -> bool:
    """Whether a run without acting exists that drifts, loses its critic or is healthy, and has no bug."""
    path = folder / "oracle.jsonl.gz"
    if not path.is_file() or RECIPES[folder.parent.name].intent.startswith("X"):
        return False
    rows = read_rows(path)
    return any(each.mode in SAVED_MODES for each in label(rows)) or is_healthy(rows)


def is_saved(mode: str, rows: Rows) -> bool:
    """
    Whether the policy that a run is left with is not damaged. Drift: its gold score is less than half a standard deviation
    below the best of the run. Critic: at the last three measurements it was no worse than a constant.
    """
    measured = [row for row in rows if "gold" in row]
    if mode == "M1":
        best = max(row["gold"] for row in measured)
        return measured[-1]["gold"] > best - GOLD_DROP * measured[0]["gold_sd"]
    return min(row["mc_r2"] for row in measured[-3:]) >= WORSE_THAN_A_CONSTANT


@dataclass(frozen=True)
class Pair:
    """
    A run and the same run acting.

    Args:
        recipe (`str`): Its recipe.
        seed (`int`): Its seed.
        modes (`tuple[str]`): Failures of the run that does not act, of those that acting should mend.
        healthy (`bool`): Whether that run is healthy.
        before, after (`list[dict]`): The oracle's rows without and with acting.
        actions (`list[dict]`): What was done.
    """

    recipe: str
    seed: int
    modes: tuple[str, ...]
    healthy: bool
    before: Rows
    after: Rows
    actions: Rows

    @property
    def gold_change(self) -> float:
        """Final gold score of the acting run over that of the other, in standard deviations of the score at the start."""
        ends = [[row["gold"] for row in rows if "gold" in row][-1] for rows in (self.before, self.after)]
        return (ends[1] - ends[0]) / self.before[0]["gold_sd"]


def pairs() -> list[Pair]:
    """Every acting run that is stored, with its other half."""
    return [_pair(path.parent) for path in sorted((RUNS / "act").glob("*/*/records.jsonl.gz"))]


def _pair(folder: Path) -> Pair:
    recipe, seed = folder.parent.name, int(folder.name)
    before, after = (read_rows(path / "oracle.jsonl.gz") for path in (folder_of(recipe, seed), folder))
    labels = {each.mode for each in label(before, RECIPES[recipe].intent)}
    actions = read_rows(folder / "actions.jsonl.gz")
    modes = tuple(mode for mode in SAVED_MODES if mode in labels)
    return Pair(recipe, seed, modes, not labels and is_healthy(before), before, after, actions)


def act_table(found: list[Pair]) -> str:
    """What acting saved and cost."""
    lines = ["| runs | | acting |", "|---|---|---|"]
    for mode, name in SAVED_MODES.items():
        failed = [pair for pair in found if mode in pair.modes]
        # What would count as saved without anything being done: the label allows for what comes back late.
        anyway = sum(is_saved(mode, pair.before) for pair in failed)
        saved = sum(is_saved(mode, pair.after) for pair in failed)
        if failed:
            low, high = wilson_interval(saved, len(failed))
            text = f"{saved}/{len(failed)} ({low:.2f} to {high:.2f}) end undamaged; {anyway} without acting"
            lines.append(f"| {mode} {name} | {len(failed)} | {text} |")
    healthy = [pair for pair in found if pair.healthy]
    changes = [pair.gold_change for pair in healthy]
    if len(changes) > 1:
        error = stdev(changes) / len(changes) ** 0.5
        touched = sum(bool(pair.actions) for pair in healthy)
        text = f"final gold {mean(changes):+.3f} +- {error:.3f} standard deviations of the score; {touched} acted upon"
        lines.append(f"| healthy | {len(healthy)} | {text} |")
    return "\n".join(lines)


def act_runs_table(found: list[Pair]) -> str:
    """One row a pair: what failed, what was done, what came of it."""
    lines = [
        "| recipe | seed | failed by | actions (rollout, lever) | change of final gold, sd | undamaged |",
        "|---" * 6 + "|",
    ]
    for pair in found:
        done = ", ".join(f"{row['action']['row']} {_lever(row['action'])}" for row in pair.actions)
        saved = ", ".join(f"{mode} {is_saved(mode, pair.after)}" for mode in pair.modes)
        told = ", ".join(pair.modes) or ("healthy" if pair.healthy else "")
        lines.append(f"| {pair.recipe} | {pair.seed} | {told} | {done} | {pair.gold_change:+.2f} | {saved} |")
    return "\n".join(lines)


def _lever(action: dict[str, Any]) -> str:
    back = " back" if action["is_reversal"] else ""
    return f"{action['lever']} {action['value']:.3g}{back} ({action['mode']})"
