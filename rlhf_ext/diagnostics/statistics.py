"""Robust statistics of short, autocorrelated series: free functions on arrays, and one recursion with state."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import Counter
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Series = Floats | array
"""Of a window of a run, numpy's calls cost more than the numbers: what is short is computed without them."""

MAD_TO_SD = 1.4826
"""Standard deviation of a Gaussian over its median absolute deviation."""


@lru_cache(maxsize=4)
def _pairs(n: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of all pairs, the earlier ones first."""
    return np.triu_indices(n, 1)


@lru_cache(maxsize=256)
def _neighbours(n: int, half: int) -> NDArray[np.intp]:
    """Of shape `(n, 2 half + 1)`: places around each place, mirrored at the ends."""
    places = np.abs(np.arange(n)[:, None] + np.arange(-half, half + 1))
    return np.where(places < n, places, 2 * (n - 1) - places)


def median(x: Series) -> float:
    """Median of a series that is not empty; for the lengths of a window ten times as fast as `numpy.median`."""
    ordered, half = sorted(x.tolist()), len(x) // 2
    return ordered[half] if len(x) % 2 else (ordered[half - 1] + ordered[half]) / 2


def block_medians(x: Series, blocks: int = 10) -> Series:
    r"""
    Medians of `blocks` consecutive pieces whose lengths differ by at most one.

    Args:
        x (`Series`): Of shape `(T,)`; with `T <= blocks` it is returned as it is.
        blocks (`int`, *optional*, defaults to `10`): Number of pieces.

    Returns:
        `Series`: shape `(min(T, blocks),)`.
    """
    if len(x) <= blocks:
        return x
    edges = [block * len(x) // blocks for block in range(blocks + 1)]
    return array("d", [median(x[a:b]) for a, b in pairwise(edges)])


def mann_kendall_z(x: Series) -> float:
    r"""
    Mann-Kendall test for a monotone trend (Mann 1945, Kendall 1975), with the variance corrected for ties:

        `S = sum_{i<j} sign(x_j - x_i)`
        `var = (n (n-1) (2n+5) - sum_ties t (t-1) (2t+5)) / 18`
        `z = (S - sign(S)) / sqrt(var)`

    Assumes independent values: give it [`block_medians`] of an autocorrelated series.

    Args:
        x (`Series`): Of shape `(T,)`.

    Returns:
        `float`: standard normal without a trend, positive for a rise; 0 for fewer than 3 values or a constant.
    """
    n, values = len(x), x.tolist()
    if n < 3:
        return 0.0
    s = 0
    earlier: list[float] = []
    for value in values:
        place = bisect_right(earlier, value)
        s += bisect_left(earlier, value) - (len(earlier) - place)
        earlier.insert(place, value)
    ties = [t for t in Counter(values).values() if t > 1] if len(set(values)) < n else []
    var = (n * (n - 1) * (2 * n + 5) - sum(t * (t - 1) * (2 * t + 5) for t in ties)) / 18
    return (s - math.copysign(1.0, s)) / math.sqrt(var) if s != 0 and var > 0 else 0.0


def trend_z(x: Series, blocks: int = 10) -> float:
    """Mann-Kendall z of the block medians: blocks longer than the correlation make it honest (see docs/diagnostics.md)."""
    return mann_kendall_z(block_medians(x, blocks))


def theil_sen(x: Floats) -> float:
    r"""
    Median of the slopes between all pairs (Theil 1950, Sen 1968), `median_{i<j} (x_j - x_i) / (j - i)`.

    Args:
        x (`numpy.ndarray`): Series of shape `(T,)`.

    Returns:
        `float`: slope from one value to the next; 0 for fewer than two.
    """
    i, j = _pairs(x.size)
    return median((x[j] - x[i]) / (j - i)) if i.size else 0.0


def robust_sd(x: Series) -> float:
    """`1.4826 * median |x - median(x)|`: the standard deviation where the bulk is Gaussian, blind to outliers."""
    return MAD_TO_SD * median(np.abs(np.asarray(x) - median(x))) if len(x) else 0.0


def robust_z(value: float, centre: float, sd: float, floor: float = 0.0) -> float:
    """`(value - centre) / max(sd, floor)`; 0 where both are 0."""
    scale = max(sd, floor)
    return (value - centre) / scale if scale > 0 else 0.0


def running_median(x: Floats, width: int = 15) -> Floats:
    r"""
    Median over `width` values centred on each, the series mirrored at its ends.

    Args:
        x (`numpy.ndarray`): Series of shape `(T,)`.
        width (`int`, *optional*, defaults to `15`): Odd; cut to the length of the series.

    Returns:
        `numpy.ndarray`: shape `(T,)`.
    """
    half = min(width // 2, max(x.size - 1, 0))
    if half == 0:
        return x.copy()
    return np.partition(x[_neighbours(x.size, half)], half, axis=1)[:, half]


def residuals(x: Floats, width: int = 15) -> Floats:
    """The series minus its running median: what a slow trend leaves."""
    return x - running_median(x, width)


def noise_sd(x: Floats, width: int = 15) -> float:
    """Robust standard deviation of the residuals: the noise of one value under a slow trend."""
    return robust_sd(residuals(x, width))


def bend_noise(x: Floats) -> float:
    """
    Noise of one value from second differences, which a trend leaves alone: `sqrt(mean (x_{t+1} - 2 x_t + x_{t-1})^2 / 6)`;
    0 for fewer than three values.
    """
    bends = x[2:] - 2 * x[1:-1] + x[:-2]
    return math.sqrt((bends * bends).sum() / bends.size / 6) if bends.size else 0.0


def largest_fall(x: Floats, most: int = 5) -> tuple[float, int]:
    r"""
    How far the end of a series lies below what came before, in standard errors where a value has unit noise: over all
    lengths `j, k <= most` and all earlier blocks `b` of `j` values, the largest

        `(mean of block b - mean of the last k values) / sqrt(1 / j + 1 / k)`

    so that a sudden fall is seen by the first values and a slow one by several.

    Args:
        x (`numpy.ndarray`): Series of shape `(T,)`.
        most (`int`, *optional*, defaults to `5`): Longest block.

    Returns:
        `tuple[float, int]`: the statistic, and the place of the middle of its block; `(0, 0)` where nothing lies below.
    """
    sums, n = np.concatenate(([0.0], x.cumsum())), x.size
    largest, place = 0.0, 0
    for k in range(1, min(most, n - 1) + 1):
        end = (sums[n] - sums[n - k]) / k
        for j in range(1, min(most, n - k) + 1):
            means = (sums[j : n - k + 1] - sums[: n - k + 1 - j]) / j
            top = int(means.argmax())
            fall = (means[top] - end) / math.sqrt(1 / j + 1 / k)
            if fall > largest:
                largest, place = float(fall), top + j // 2
    return largest, place


def ratio_to(value: float, reference: float) -> float | None:
    """`value / reference` where the reference is positive, else `None`: no ratio to nothing."""
    return value / reference if reference > 0 else None


class PageHinkley:
    r"""
    Page-Hinkley test for a rise of the mean (Page 1954), on values standardised by a frozen reference:

        `m_t = m_{t-1} + z_t - delta`,  alarm when  `m_t - min_{s<=t} m_s > threshold`

    computed as the equal recursion `u_t = max(0, u_{t-1} + z_t - delta)`.

    Args:
        delta (`float`): Rise in standard deviations that is tolerated for ever.
        threshold (`float`): Accumulated excess, in standard deviations, that raises the alarm.
    """

    def __init__(self, delta: float, threshold: float) -> None:
        self.delta, self.threshold = delta, threshold
        self.excess = 0.0

    def update(self, z: float) -> bool:
        """Takes the next value; whether the alarm is on."""
        self.excess = max(0.0, self.excess + z - self.delta)
        return self.excess > self.threshold

    def state_dict(self) -> dict[str, Any]:
        """The recursion's state."""
        return {"excess": self.excess}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self.excess = state["excess"]
