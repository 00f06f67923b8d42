"""Statistics of scored preference pairs: interval of an accuracy, calibration, correlation.

A pair is (chosen, rejected); its margin is the score of the chosen completion minus the score of the rejected one, and
sigmoid(margin) is the probability that the Bradley-Terry model gives to the label. NumPy and standard library only.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ReliabilityBin:
    """
    One row of a reliability table: the pairs whose confidence lies in `(lower, upper]` (the first bin holds 0.5 too).

    Args:
        lower (`float`):
            Lower end of the bin.
        upper (`float`):
            Upper end of the bin.
        count (`int`):
            Number of pairs in the bin.
        confidence (`float` or `None`):
            Mean confidence of those pairs; `None` for an empty bin.
        accuracy (`float` or `None`):
            Fraction of those pairs that the model orders as labelled, ties as half; `None` for an empty bin.
        share (`float`):
            Their part of all pairs, by weight.
    """

    lower: float
    upper: float
    count: int
    confidence: float | None
    accuracy: float | None
    share: float


def wilson_interval(successes: float, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """
    Wilson score interval of a proportion: with p = successes / trials and z the normal quantile of the confidence,
    (p + z²/2n ± z sqrt(p(1 - p)/n + z²/4n²)) / (1 + z²/n). It stays in [0, 1], and is not empty at 0 or n successes.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Args:
        successes (`float`):
            Number of successes; halves (ties) are allowed.
        trials (`int`):
            Number of trials, at least 1.
        confidence (`float`, *optional*, defaults to `0.95`):
            Two-sided confidence, in (0, 1).

    Returns:
        `tuple[float, float]`: lower and upper end.

    Raises:
        `ValueError`: for `trials` below 1, `successes` outside [0, trials], `confidence` outside (0, 1).
    """
    if trials < 1:
        raise ValueError(f"trials must be at least 1, got {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in [0, trials = {trials}], got {successes}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; for 95 % give 0.95")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p = successes / trials
    centre = p + z * z / (2 * trials)
    half_width = z * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # The ends are exactly 0 and 1 there; rounding would put them a hair off, and the proportion outside its interval.
    low = 0.0 if successes == 0 else (centre - half_width) / scale
    high = 1.0 if successes == trials else (centre + half_width) / scale
    return low, high


def correctness(margins: ArrayLike) -> NDArray[np.float64]:
    """
    1 where the margin is positive, 0 where it is negative, 0.5 for a tie.

    Args:
        margins (`array_like` of shape `(N,)`):
            Score of the chosen completion minus score of the rejected one.

    Returns:
        `np.ndarray` of shape `(N,)`.
    """
    return (np.sign(np.asarray(margins, dtype=np.float64)) + 1) / 2


def preferred_side_confidence(margins: ArrayLike) -> NDArray[np.float64]:
    """
    Probability that the model gives to the side it prefers: sigmoid(|margin|), in [0.5, 1].

    The chosen side always comes first in the data, so sigmoid(margin) can only be compared with labels that are all 1.
    The confidence in the preferred side does not know which side was chosen, and is right or wrong.

    Args:
        margins (`array_like` of shape `(N,)`):
            Score of the chosen completion minus score of the rejected one.

    Returns:
        `np.ndarray` of shape `(N,)`.
    """
    return 1 / (1 + np.exp(-np.abs(np.asarray(margins, dtype=np.float64))))


def brier_score(margins: ArrayLike, weights: ArrayLike | None = None) -> float:
    """
    Mean of (confidence - correct)² over pairs, confidence as in [`preferred_side_confidence`], correct = margin > 0.

    The square is the same whichever side the pair is read from, so this is also the mean of (1 - sigmoid(margin))². A
    coin scores 0.25, as does a tie.

    Source: G. W. Brier, Verification of forecasts expressed in terms of probability, Monthly Weather Review 78 (1950).

    Args:
        margins (`array_like` of shape `(N,)`, N >= 1):
            Score of the chosen completion minus score of the rejected one.
        weights (`array_like` of shape `(N,)`, *optional*):
            How much each pair counts.

    Returns:
        `float` in [0, 1].
    """
    margins = np.asarray(margins, dtype=np.float64)
    weight = np.ones_like(margins) if weights is None else np.asarray(weights, dtype=np.float64)
    return float(np.average((preferred_side_confidence(margins) - (margins > 0)) ** 2, weights=weight))


def reliability_table(
    margins: ArrayLike, bins: int = 10, weights: ArrayLike | None = None
) -> tuple[ReliabilityBin, ...]:
    """
    How often the model is right at each level of confidence, in bins of equal width over [0.5, 1].

    Args:
        margins (`array_like` of shape `(N,)`):
            Score of the chosen completion minus score of the rejected one.
        bins (`int`, *optional*, defaults to `10`):
            Number of bins.
        weights (`array_like` of shape `(N,)`, *optional*):
            How much each pair counts in its bin, and the bin among the others.

    Returns:
        `tuple[ReliabilityBin, ...]`: one row a bin, in rising order of confidence; empty bins are kept.

    Raises:
        `ValueError`: for fewer than 1 bin.
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence, correct = preferred_side_confidence(margins), correctness(margins)
    weight = np.ones_like(confidence) if weights is None else np.asarray(weights, dtype=np.float64)
    edges = np.linspace(0.5, 1.0, bins + 1)
    index = np.searchsorted(edges[1:-1], confidence, side="left")
    rows = []
    for i in range(bins):
        inside = index == i
        rows.append(
            ReliabilityBin(
                lower=float(edges[i]),
                upper=float(edges[i + 1]),
                count=int(inside.sum()),
                confidence=float(np.average(confidence[inside], weights=weight[inside])) if inside.any() else None,
                accuracy=float(np.average(correct[inside], weights=weight[inside])) if inside.any() else None,
                share=float(weight[inside].sum() / weight.sum()) if inside.any() else 0.0,
            )
        )
    return tuple(rows)


def expected_calibration_error(table: tuple[ReliabilityBin, ...]) -> float:
    """
    Mean over pairs of |accuracy - confidence| of the pair's bin.

    Source: M. P. Naeini, G. Cooper, M. Hauskrecht, Obtaining well calibrated probabilities using Bayesian binning,
    AAAI 2015.

    Args:
        table (`tuple[ReliabilityBin, ...]`):
            A [`reliability_table`] with at least one pair.

    Returns:
        `float` in [0, 1].
    """
    gaps = ((row.share, row.accuracy, row.confidence) for row in table)
    return sum(share * abs(acc - conf) for share, acc, conf in gaps if acc is not None and conf is not None)


def average_ranks(values: ArrayLike) -> NDArray[np.float64]:
    """
    Ranks from 1 to N in rising order; equal values share the mean of the ranks they cover.

    Args:
        values (`array_like` of shape `(N,)`):
            Values without NaN.

    Returns:
        `np.ndarray` of shape `(N,)`.
    """
    _, index, counts = np.unique(np.asarray(values, dtype=np.float64), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[index]


def pearson(x: ArrayLike, y: ArrayLike) -> float | None:
    """
    Pearson correlation: sum (x - x̄)(y - ȳ) / sqrt(sum (x - x̄)² sum (y - ȳ)²).

    Args:
        x (`array_like` of shape `(N,)`):
            First variable.
        y (`array_like` of shape `(N,)`):
            Second variable.

    Returns:
        `float` in [-1, 1], or `None` with fewer than two points or a constant variable.
    """
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    dx, dy = x - x.mean(), y - y.mean()
    norm = math.sqrt((dx @ dx) * (dy @ dy))
    return float(np.clip(dx @ dy / norm, -1.0, 1.0)) if norm > 0 else None


def spearman(x: ArrayLike, y: ArrayLike) -> float | None:
    """
    Spearman correlation: the Pearson correlation of the [`average_ranks`].

    Args:
        x (`array_like` of shape `(N,)`):
            First variable.
        y (`array_like` of shape `(N,)`):
            Second variable.

    Returns:
        `float` in [-1, 1], or `None` with fewer than two points or a constant variable.
    """
    return pearson(average_ranks(x), average_ranks(y))
