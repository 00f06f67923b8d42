"""
How early anybody could say that the gold score falls who reads nothing else: not a detector, but what one is measured by.

The reader knows the noise of a value, looks for the largest fall after every value, and warns at the bound that 5 % of the
series pass which do not change.
"""

import math
from pathlib import Path
from statistics import median

import numpy as np

from rlhf_ext.diagnostics.statistics import largest_fall

from .labels import label
from .stored import read_rows

FALSE_ALARMS = 0.05
SERIES = 200
DRAWS = 5
READERS = {
    "the probe: 16 notes every 5 rollouts": (16, 5),
    "the same notes, 3 every rollout": (3, 1),
    "the oracle: 192 notes every 4 rollouts": (192, 4),
}


def _largest(x: np.ndarray) -> list[float]:
    return [largest_fall(x[:end], most=12)[0] for end in range(2, x.size + 1)]


def _bound(values: int, rng: np.random.Generator) -> float:
    tops = [max(_largest(rng.normal(size=values))) for _ in range(SERIES)]
    return float(np.quantile(tops, 1 - FALSE_ALARMS))


def leads(folder: Path, notes: int, every: int) -> list[float]:
    """
    Lead over the damage of hacked runs (M3), as shares of the run; -1 for a run that is not seen.

    Args:
        folder (`Path`): Runs of a split.
        notes (`int`): Notes a value.
        every (`int`): Rollouts from one value to the next.
    """
    rng, found = np.random.default_rng(0), []
    bounds: dict[int, float] = {}
    for path in sorted(folder.glob("*/*/oracle.jsonl.gz")):
        rows = [row for row in read_rows(path) if "gold" in row]
        damage = next((each.damage for each in label(rows) if each.mode == "M3"), None)
        if damage is None:
            continue
        last, error = rows[-1]["rollout"], rows[0]["gold_sd"] / math.sqrt(notes)
        at = np.arange(0, last + 1, every)
        gold = np.interp(at, [row["rollout"] for row in rows], [row["gold"] for row in rows])
        if at.size not in bounds:
            bounds[at.size] = _bound(at.size, rng)
        # The oracle's own values have their noise already.
        exact = notes == 192
        for _ in range(1 if exact else DRAWS):
            noisy = gold if exact else gold + rng.normal(0, error, gold.size)
            seen = next((at[i + 1] for i, fall in enumerate(_largest(noisy / error)) if fall > bounds[at.size]), None)
            found.append(-1.0 if seen is None else (damage - seen) / last)
    return found


def bound_table(folder: Path) -> str:
    """One row a reader."""
    lines = ["| reader of the gold score alone | lead over the damage, median | before the damage |", "|---|---|---|"]
    for name, (notes, every) in READERS.items():
        found = leads(folder, notes, every)
        lines.append(f"| {name} | {median(found):+.2f} | {np.mean([lead > 0 for lead in found]):.2f} |")
    return "\n".join(lines)
