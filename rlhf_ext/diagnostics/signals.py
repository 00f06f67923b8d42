"""Readings that several detectors share."""

import math
from typing import NamedTuple

import numpy as np

from .history import Change, History
from .statistics import MAD_TO_SD, median

FEW_PROBES = 6
"""Held-out values below which no decline is told from noise."""


class Distance(NamedTuple):
    """KL to the reference in the unit that is watched: its name, its unit in words, and the target if there is one."""

    name: str
    unit: str
    target: float | None


def distance(history: History) -> Distance:
    """The KL to watch: that of the target's unit, else per sequence, else per token."""
    settings = history.settings
    if settings.kl_target is not None and settings.kl_unit == "token" and history.has("kl_ref_tok"):
        return Distance("kl_ref_tok", "nats/token", settings.kl_target)
    if not history.has("kl_ref_seq"):
        return Distance("kl_ref_tok", "nats/token", None)
    target = history.now("kl_target")
    if target is None and settings.kl_unit != "token":
        target = settings.kl_target
    return Distance("kl_ref_seq", "nats/sequence", target if target is None or target > 0 else None)


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
    How far a held-out series is below its best.

    The largest of many noisy values lies above all that follow, also where nothing declines. So the best is the largest
    median of five neighbours, and what stands against it is the larger of the medians of the last three and of the last
    five.
    """
    _, steps, values = history.logged(name, 2 * history.windows.window)
    if values.size < FEW_PROBES:
        return None
    smooth = np.median(np.lib.stride_tricks.sliding_window_view(values, 5), axis=1)
    best = int(np.argmax(smooth))
    # Differences of neighbours: a running median over so few values would hold much of the noise.
    noise = MAD_TO_SD * median(np.abs(np.diff(values))) / math.sqrt(2)
    now = max(median(values[-3:]), median(values[-5:]))
    return Decline(float(smooth[best]), now, noise, int(steps[best + 2]))


def held_out_falls(history: History, sds: float = 1.5) -> bool:
    """Whether a held-out quality lies clearly below its best."""
    fall = decline(history, "quality")
    return fall is not None and fall.in_noise > sds


def describe(change: Change, unit: str) -> str:
    """Before and after in words."""
    return f"from {change.before:.3g} to {change.after:.3g} {unit} (trend z = {change.z:.1f})"


def optimum_kl(history: History) -> float | None:
    """
    KL in nats per sequence at which the score stops paying for more, `score_std^2 / (2 beta^2)`: the optimum of
    `E[score] - beta * KL` for Gaussian scores. Infinite without a penalty.
    """
    beta, spread = history.level("beta"), history.level("score_std")
    if beta is None or spread is None:
        return None
    return spread**2 / (2 * beta**2) if beta > 0 else math.inf


def still_beta(history: History, rows: int) -> bool:
    """Whether beta did not move at all in the last rows, while it did earlier."""
    values = history.values("beta", rows)
    moved = history.beta_range is not None and history.beta_range[0] < history.beta_range[1]
    return moved and values.size >= rows and bool(np.all(values == values[0]))
