"""The simple rules: fixed, Ziegler 2019, multiplicative."""

import math

from .base import KLController, KLMeasurement


class FixedKLController(KLController):
    """Keeps `beta` as it is: `beta_{k+1} = beta_k`. A target, where given, is only reported."""

    kind = "fixed"

    def __init__(self, beta: float, target: float | None = None, unit: str | None = None) -> None:
        super().__init__(beta, target, unit)
        self.status = "fixed"

    def _step(self, measurement: KLMeasurement) -> None:
        self.status = "fixed"


class ZieglerKLController(KLController):
    r"""
    The rule of [Ziegler et al. 2019](https://huggingface.co/papers/1909.08593), for reproductions:
    `beta <- beta * (1 + clip(KL / target - 1, -0.2, 0.2) * n / horizon)` with `n` sequences in the rollout.
    The one difference: a measurement that is not finite leaves `beta` alone, where the original makes it NaN for ever.

    Args:
        beta, target, unit: see [`KLController`].
        horizon (`int`, *optional*, defaults to `10000`):
            Episodes over which a saturated error (20 %) changes `beta` by 20 %.
    """

    kind = "ziegler"
    _state_names = (*KLController._state_names, "horizon")

    def __init__(self, beta: float, target: float, unit: str, horizon: int = 10_000) -> None:
        if horizon <= 0:
            raise ValueError(
                f"`horizon` must be a positive number of episodes, got {horizon}; the 2019 value is 10000."
            )
        super().__init__(beta, target, unit)
        self.horizon = horizon

    def _step(self, measurement: KLMeasurement) -> None:
        error = min(max(measurement.mean / self._goal - 1, -0.2), 0.2)
        self.beta = self.beta * (1 + error * measurement.num_sequences / self.horizon)
        self.status = "tracking"


class MultiplicativeKLController(KLController):
    r"""
    Leaves `beta` alone inside a band around the target; outside, multiplies or divides it. With
    `e = log(KL / target)`: above `(1 + band) * target`, `beta <- beta * factor` at once; below
    `(1 - band) * target`, `beta <- beta * factor ** max(e, -1)`, a division whose size grows with the error, so that
    the policy is released smoothly. A negative KL leaves `beta` alone.

    Args:
        beta, target, unit: see [`KLController`].
        factor (`float`, *optional*, defaults to `1.2`): largest change in one rollout; above 1.
        band (`float`, *optional*, defaults to `0.2`): half width of the dead band, relative to the target; in [0, 1).
    """

    kind = "multiplicative"
    _state_names = (*KLController._state_names, "factor", "band")

    def __init__(self, beta: float, target: float, unit: str, factor: float = 1.2, band: float = 0.2) -> None:
        if not 1 < factor < math.inf:
            raise ValueError(f"`factor` must be above 1, got {factor}; 1.1 to 1.5 are usual.")
        if not 0 <= band < 1:
            raise ValueError(f"`band` is a fraction of the target in [0, 1), got {band}; 0.2 means 20 %.")
        super().__init__(beta, target, unit)
        self.factor = factor
        self.band = band

    def _step(self, measurement: KLMeasurement) -> None:
        ratio = measurement.mean / self._goal
        self.status = "hold"
        if ratio > 1 + self.band:
            self._scale(self.factor)
        elif 0 <= ratio < 1 - self.band:
            self._scale(self.factor ** math.log(max(ratio, math.exp(-1))))

    def _scale(self, factor: float) -> None:
        self.beta = self.beta * factor
        self.status = "tracking"
