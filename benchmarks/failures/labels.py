"""
What really happened in a run, read off the oracle's rows alone: neither the settings nor the records are looked at.

Only bugs (`X1`, `X2`, ...) are labelled by construction, because nothing else than the fault defines them.
"""

from dataclasses import dataclass
from statistics import median
from typing import Any

from .recipes import RECIPES

HEALTHY_KL = 4.0
"""Nats per sequence at which the base settles, its gold score still rising."""
GOLD_DROP = 0.5
"""Damage, in standard deviations of the gold score before the run."""
MANY_DUPLICATES = 0.3
MIN_MOVE = HEALTHY_KL / 8
"""Nats of exact KL that a policy has moved at least, at the end of a run; noise of the updates alone keeps 0.2 to 0.4."""
LEAST_SPREAD = 0.01
"""Deviation of the scores, below which there is nothing for a critic to foresee."""
WORSE_THAN_A_CONSTANT = -0.1
"""Share of the variance of true returns; measured on 192 notes, 0 give or take 0.03 is a critic that says their mean."""
KNOWS_NOTHING, KNEW = 0.02, 0.1
"""Share of that variance that a critic explains now, and has explained before."""
FORESEEABLE = 0.3
"""Correlation of two scorings of the same notes, below which no critic is to blame."""
SETTLING = 0.2
"""Part of a run in which a critic may know nothing yet."""

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Label:
    """
    A failure that the oracle confirms.

    Args:
        mode (`str`): Its identifier.
        onset (`int`): Rollout at which it began.
        damage (`int`): Rollout at which the damage was done.
    """

    mode: str
    onset: int
    damage: int


def label(rows: Rows, intent: str = "") -> list[Label]:
    """
    Failures in a run.

    Args:
        rows (`list[dict]`): The oracle's rows.
        intent (`str`): Intent of the recipe, of which only bugs are taken.
    """
    measured = [row for row in rows if "gold" in row]
    found = [_gold_damage(measured), _collapse(measured), _critic(measured), _still(measured)]
    if intent.startswith("X"):
        found.append(Label(intent, 0, measured[-1]["rollout"]))
    return [each for each in found if each is not None]


def is_healthy(rows: Rows, critic_is_measured: bool = True) -> bool:
    """
    No failure, and good in its own right: the gold score ends half a standard deviation above where it began and no more
    than a quarter below its peak, fewer than 10 % duplicates, and a critic that explains something in the second half,
    where the oracle has enough completions to tell.
    """
    measured = [row for row in rows if "gold" in row]
    if len(measured) < len(rows) or label(rows):
        return False
    spread, golds = measured[0]["gold_sd"], [row["gold"] for row in measured]
    end = max(golds[-3:])
    second_half = measured[len(measured) // 2 :]
    explained = sum(row["mc_ev"] for row in second_half) / len(second_half)
    return (
        end >= golds[0] + 0.5 * spread
        and end >= max(golds) - 0.25 * spread
        and max(row["duplicates"] for row in measured[-3:]) < 0.1
        and (explained > KNOWS_NOTHING or not critic_is_measured)
    )


def _first_lasting(holds: list[bool], times: int = 2) -> int | None:
    """Index at which a condition begins that holds `times` measurements in a row."""
    runs = range(len(holds) - times + 1)
    return next((i for i in runs if all(holds[i : i + times])), None)


def _gold_damage(rows: Rows) -> Label | None:
    """
    The gold score half a standard deviation below its running peak: reward hacking (M3) where the run's own reward has
    risen since that peak, drift (M1) where it has not and the exact KL is three times a healthy run's. A score that comes
    back, to a quarter of a standard deviation below its best, was only a dip.
    """
    spread, peak, peaks = rows[0]["gold_sd"], 0, []
    for i, row in enumerate(rows):
        peak = i if row["gold"] > rows[peak]["gold"] else peak
        peaks.append(peak)
    at = _first_lasting(
        [row["gold"] <= rows[p]["gold"] - GOLD_DROP * spread for row, p in zip(rows, peaks, strict=True)]
    )
    end = sum(row["gold"] for row in rows[-3:]) / 3
    if at is None or end > rows[peak]["gold"] - 0.25 * spread:
        return None
    best, after = rows[peaks[at]], rows[at:]
    proxy = sum(row["proxy"] for row in after) / len(after)
    if proxy > best["proxy"] + 0.1 * best["score_sd"]:
        return Label("M3", best["rollout"], rows[at]["rollout"])
    if max(row["kl"] for row in after) > 3 * HEALTHY_KL:
        return Label("M1", best["rollout"], rows[at]["rollout"])
    return None


def _collapse(rows: Rows) -> Label | None:
    """M2: more than 30 % of the notes stand under several requests."""
    at = _first_lasting([row["duplicates"] > MANY_DUPLICATES for row in rows])
    if at is None:
        return None
    onset = max((i for i in range(at) if rows[i]["duplicates"] <= 0.1), default=0)
    return Label("M2", rows[onset]["rollout"], rows[at]["rollout"])


def critic_failures(rows: Rows) -> dict[str, int]:
    """
    Ways in which the critic failed -> index at which it began, not while it may still learn: three times in a row `"worse"`
    than a constant at true returns, or five times it `"forgot"`, explaining nothing of what it explained before and what
    can be foreseen. (A critic that explains little passes zero by the noise of a measurement.)
    """
    settled = SETTLING * rows[-1]["rollout"]
    wrong, forgot, known = [], [], 0.0
    for row in rows:
        late = row["rollout"] > settled
        wrong.append(late and row["mc_r2"] < WORSE_THAN_A_CONSTANT and row["score_sd"] > LEAST_SPREAD)
        forgot.append(late and explains_nothing(row) and known > KNEW)
        known = max(known, row["mc_ev"])
    begins = {"worse": _first_lasting(wrong, times=3), "forgot": _first_lasting(forgot, times=5)}
    return {way: at for way, at in begins.items() if at is not None}


def _critic(rows: Rows) -> Label | None:
    """M4: the critic failed one way or the other."""
    failures = critic_failures(rows)
    if not failures:
        return None
    at = min(failures.values())
    onset = max((i for i in range(at) if rows[i]["mc_r2"] > 0), default=0)
    return Label("M4", rows[onset]["rollout"], rows[at]["rollout"])


def explains_nothing(row: dict[str, Any]) -> bool:
    """Whether the critic explains nothing of what can be foreseen."""
    return row["mc_ev"] < KNOWS_NOTHING and row["reliability"] > FORESEEABLE


def _still(rows: Rows) -> Label | None:
    """M5: the policy has not moved, and the gold score is where it was; nothing of a run that broke off before it could."""
    first, late = rows[0], rows[-5:]
    if rows[-1]["rollout"] == 0:
        return None
    gold = sum(row["gold"] for row in late) / len(late)
    if median(row["kl"] for row in late) >= MIN_MOVE or abs(gold - first["gold"]) >= 0.25 * first["gold_sd"]:
        return None
    return Label("M5", 0, rows[-1]["rollout"])


def describe(name: str, rows: Rows) -> str:
    """One line on a run: its labels, or that it is healthy, or neither."""
    labels = label(rows, RECIPES[name].intent)
    if labels:
        return ", ".join(f"{each.mode} ({each.onset} to {each.damage})" for each in labels)
    return "healthy" if is_healthy(rows, critic_is_measured(name)) else "neither"


def critic_is_measured(name: str) -> bool:
    """Whether the oracle of a recipe's world knows a critic that explains a little from one that explains nothing."""
    return RECIPES[name].world == "small"
