"""Readings that several detectors share."""

import math
from typing import NamedTuple

import numpy as np

from .history import Change, History

FEW_PROBES = 8
"""Held-out values below which no decline is told from noise."""
NEIGHBOURS = 5
"""Held-out values that are averaged before they are compared."""
CLEAR_FALL = 2.5
"""Standard deviations of one value, three probes in a row: on noise without a trend passed in 1 % of series of 48 probes,
and in 30 % at 1.5."""


class Distance(NamedTuple):
    """KL to the reference in the unit that is watched: its name, its unit in words, and the target if there is one."""

    name: str
    unit: str
    target: float | None


def distance(history: History) -> Distance:
    """The KL to watch: that of the target's unit, else per sequence, else per token."""
    goal, unit = history.settings.kl_target, history.settings.kl_unit
    goal = goal if goal is not None and goal > 0 else None
    if goal is not None and unit == "token" and history.has("kl_ref_tok"):
        return Distance("kl_ref_tok", "nats/token", goal)
    if not history.has("kl_ref_seq"):
        return Distance("kl_ref_tok", "nats/token", None)
    logged = history.latest("kl_target")
    if logged is not None and logged > 0:
        return Distance("kl_ref_seq", "nats/sequence", logged)
    return Distance("kl_ref_seq", "nats/sequence", goal if unit != "token" else None)


def score_improves(history: History, rows: int | None = None) -> bool:
    """Whether the score rose within the last rows (W), by trend or by more than the noise of a rollout."""
    change = history.change("score_mean", rows)
    return change is not None and change.improved


def quality_improves(history: History) -> bool:
    """Whether a held-out quality is logged and rose within two windows: what looks like a failure then is learning."""
    change = history.change("quality", 2 * history.windows.window)
    return change is not None and change.z >= 1.28 and change.after > change.before


class Decline(NamedTuple):
    """A held-out series against its own best: both levels, the noise of one value, and the step of the best."""

    best: float
    now: float
    noise: float
    best_step: int

    @property
    def in_noise(self) -> float:
        """How far below the best, in standard deviations of one value."""
        return (self.best - self.now) / self.noise if self.noise > 0 else 0.0


def decline(history: History, name: str) -> Decline | None:
    r"""
    How far a held-out series is below its best, both taken as means of `NEIGHBOURS` values: the largest of many noisy
    values lies above all that follow, also where nothing declines. The noise of one value is that of the differences of
    neighbours, `std(x_{t+1} - x_t) / sqrt(2)`.
    """
    _, steps, values = history.logged(name, 2 * history.windows.window)
    if values.size < FEW_PROBES:
        return None
    sums = np.concatenate([[0.0], np.cumsum(values)])
    smooth = (sums[NEIGHBOURS:] - sums[:-NEIGHBOURS]) / NEIGHBOURS
    best, noise = int(np.argmax(smooth)), float(np.std(np.diff(values))) / math.sqrt(2)
    return Decline(float(smooth[best]), float(smooth[-1]), noise, int(steps[best + NEIGHBOURS // 2]))


def held_out_falls(history: History) -> bool:
    """Whether a held-out quality lies clearly below its best."""
    fall = decline(history, "quality")
    return fall is not None and fall.in_noise > CLEAR_FALL


def describe(change: Change, unit: str) -> str:
    """Before and after in words."""
    return f"from {change.before:.3g} to {change.after:.3g} {unit} (trend z = {change.z:.1f})"


def optimum_kl(history: History) -> float | None:
    """
    KL at which the score stops paying for more, `score_std^2 / (2 beta^2)` nats per sequence: the optimum of
    `E[score] - beta * KL` for Gaussian scores. In the unit that is watched; infinite without a penalty.
    """
    beta, spread = history.level("beta"), history.level("score_std")
    tokens = 1.0 if distance(history).name == "kl_ref_seq" else history.level("len_mean")
    if beta is None or spread is None or tokens is None or tokens <= 0:
        return None
    ratio = spread / beta if beta > 0 else math.inf
    return ratio * ratio / 2 / tokens


def still_beta(history: History, rows: int) -> bool:
    """Whether beta did not move at all in the last rows, while it did earlier."""
    values = history.values("beta", rows)
    moved = history.beta_range is not None and history.beta_range[0] < history.beta_range[1]
    return moved and values.size >= rows and bool(np.all(values == values[0]))
