"""Readings that several detectors share."""

import math
from typing import NamedTuple

import numpy as np

from .history import Change, History
from .statistics import bend_noise, median

FEW_PROBES = 8
"""Held-out values below which no decline is told from noise."""
MANY_PROBES = 20
"""Held-out values from which the best of them is too good by more than the thresholds allow for."""
NEIGHBOURS = 5
"""Held-out values that are averaged before they are compared."""
CLEAR_FALL = 2.25
"""Standard deviations of one value, three probes in a row: on noise without a trend passed in 2 % of series of 20 probes
and 4 % of series of 48, in none where the values rise and settle (docs/diagnostics.md)."""


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


def score_gains(history: History) -> bool:
    """
    Whether there is something to show for what the policy does: the score rose within W; or within 2 W both by trend and by
    the noise of a rollout, without a clear fall at the end, as in slow runs, which gain less than that within W.
    """
    change, longer = history.change("score_mean"), history.change("score_mean", 2 * history.windows.window)
    if change is None or longer is None:
        return False
    slow = longer.z >= 1.28 and longer.after - longer.before >= max(longer.noise, 1e-12)
    return change.improved or (slow and not change.fell)


def quality_improves(history: History) -> bool:
    """Whether a held-out quality is logged and rose within two windows: what looks like a failure then is learning."""
    change = history.change("quality", 2 * history.windows.window)
    return change is not None and change.z >= 1.28 and change.after > change.before


def wider(number: int) -> float:
    """
    Factor of the noise where the best of more than `MANY_PROBES` values is compared: the largest of n lies
    `sqrt(2 log n)` standard deviations above their mean.
    """
    return max(1.0, math.sqrt(math.log(number) / math.log(MANY_PROBES)))


class Decline(NamedTuple):
    """
    A held-out series against its own best: both levels, the noise of one value, the step of the best, and the number of
    values that the best is of.
    """

    best: float
    now: float
    noise: float
    best_step: int
    number: int

    @property
    def in_noise(self) -> float:
        """
        How far below the best, in standard deviations of one value; of more than `MANY_PROBES` in [`wider`] ones.
        """
        width = self.noise * wider(self.number)
        return (self.best - self.now) / width if width > 0 else 0.0


def decline(history: History, name: str) -> Decline | None:
    r"""
    How far a held-out series is below its best, both taken as means of `NEIGHBOURS` values: the largest of many noisy
    values lies above all that follow, also where nothing declines. All values that are kept count, 2 W of
    them, however many rollouts lie between two.
    """
    _, steps, values = history.logged(name, history.rows)
    if values.size < FEW_PROBES:
        return None
    sums = np.zeros(values.size + 1)
    values.cumsum(out=sums[1:])
    smooth = (sums[NEIGHBOURS:] - sums[:-NEIGHBOURS]) / NEIGHBOURS
    best, noise = int(smooth.argmax()), bend_noise(values)
    return Decline(float(smooth[best]), float(smooth[-1]), noise, int(steps[best + NEIGHBOURS // 2]), values.size)


def held_out_falls(history: History) -> bool:
    """Whether a held-out quality lies clearly below its best."""
    fall = decline(history, "quality")
    return fall is not None and fall.in_noise > CLEAR_FALL


def first_spread(history: History) -> float | None:
    """Standard deviation of the scores within a rollout at the start: that of the reference, or the median so far."""
    reference = history.reference("score_std")
    if reference is not None:
        return reference.median
    values = history.values("score_std", history.rows)
    return median(values) if values.size else None


def describe(change: Change, unit: str) -> str:
    """Before and after in words."""
    return (
        f"from {change.before:.3g} to {change.after:.3g} {unit} (Theil-Sen {change.slope:+.2g} a logged value, "
        f"trend z = {change.z:.1f})"
    )


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
