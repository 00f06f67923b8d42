"""What `diagnostics="act"` saves, and what it costs: runs beside the same runs without it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rlhf_ext.pair_statistics import wilson_interval

from .labels import GOLD_DROP, KNEW, WORSE_THAN_A_CONSTANT, critic_failures, explains_nothing, is_healthy, label
from .recipes import RECIPES
from .stored import RUNS, folder_of, read_rows

SAVED_MODES = {"M1": "drift", "M4": "critic"}
CRITIC_WAYS = {"worse": "worse than a constant", "forgot": "explains nothing any more"}

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
    below the best of the run. Critic: at the last three measurements it was no worse than a constant, and if it ever
    explained something, at one of them it still did: one that says the same of everything is not saved.
    """
    measured = [row for row in rows if "gold" in row]
    if mode == "M1":
        best = max(row["gold"] for row in measured)
        return measured[-1]["gold"] > best - GOLD_DROP * measured[0]["gold_sd"]
    return all(is_mended(way, measured) for way in CRITIC_WAYS)


def is_mended(way: str, rows: Rows) -> bool:
    """Whether a critic is in the end, of the ways in which it may fail, rid of this one."""
    measured = [row for row in rows if "gold" in row]
    last, knew = measured[-3:], max(row["mc_ev"] for row in measured) > KNEW
    if way == "forgot":
        return not (knew and all(explains_nothing(row) for row in last))
    return min(row["mc_r2"] for row in last) >= WORSE_THAN_A_CONSTANT


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
    def measured(self) -> Rows:
        """Measurements of the run that does not act."""
        return [row for row in self.before if "gold" in row]

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
        lines += _saved_row(f"{mode} {name}", failed, lambda rows, mode=mode: is_saved(mode, rows))  # type: ignore[misc]
    for way, name in CRITIC_WAYS.items():
        failed = [pair for pair in found if "M4" in pair.modes and way in critic_failures(pair.measured)]
        lines += _saved_row(f"of these {name}", failed, lambda rows, way=way: is_mended(way, rows))  # type: ignore[misc]
    healthy = [pair for pair in found if pair.healthy]
    changes = [pair.gold_change for pair in healthy]
    if len(changes) > 1:
        error = stdev(changes) / len(changes) ** 0.5
        touched = sum(bool(pair.actions) for pair in healthy)
        text = f"final gold {mean(changes):+.3f} +- {error:.3f} standard deviations of the score; {touched} acted upon"
        lines.append(f"| healthy | {len(healthy)} | {text} |")
    return "\n".join(lines)


def _saved_row(title: str, failed: list[Pair], holds: Callable[[Rows], bool]) -> list[str]:
    if not failed:
        return []
    # What would count as saved without anything being done: the label allows for what comes back late.
    anyway, saved = sum(holds(pair.before) for pair in failed), sum(holds(pair.after) for pair in failed)
    low, high = wilson_interval(saved, len(failed))
    text = f"{saved}/{len(failed)} ({low:.2f} to {high:.2f}) end undamaged; {anyway} without acting"
    return [f"| {title} | {len(failed)} | {text} |"]


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
