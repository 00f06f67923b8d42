"""Proportional-integral control of log(beta)."""

import math
from dataclasses import dataclass

from .base import MAX_CONSECUTIVE_INVALID, KLController, KLMeasurement

# A KL below 5 % of the target counts as 5 %: its logarithm would be mostly noise.
MIN_RELATIVE_DISTANCE = math.sqrt(0.05)


@dataclass(frozen=True)
class LogPISettings:
    """
    Constants of [`LogPIKLController`], fitted to the planned number of rollouts `N`. Tuned on the simulated plants of
    `benchmarks/kl_plants.py`.

    Args:
        gain_p (`float`): Answer to a change of the error. The plant's own gain is -2 (KL goes as beta^-2), so that 0.5
            would cancel a step exactly; 1.8 brakes before the target, which the lag of a few rollouts requires.
        gain_i (`float`): Answer to a lasting error per rollout: `6 / N`, so that a sixth of a run removes it.
        ema (`float`): Weight of the newest measurement; short runs cannot wait for a long average.
        lead (`float`): Rollouts by which the distance is extrapolated; optimizers with momentum go on that long.
        horizon (`float`): Rollouts within which a KL that moves toward the target by itself is left alone.
        max_rise, max_fall (`float`): Largest change of `log(beta)` per rollout, up and down.
        warmup (`int`): First rollouts without a change while the KL is below the target: it starts at zero.
        patience (`int`): Rollouts at a bound before the controller says that it is saturated.
    """

    gain_p: float
    gain_i: float
    ema: float
    lead: float
    horizon: float
    max_rise: float
    max_fall: float
    warmup: int
    patience: int

    @classmethod
    def for_rollouts(cls, n: int) -> "LogPISettings":
        """Settings for a run of `n` rollouts: a factor of 10 in beta takes an eighth of it upwards, a fifth downwards."""
        decade = math.log(10)
        return cls(
            gain_p=1.8,
            gain_i=_clip(6 / n, 0.05, 0.25),
            ema=0.6 if n <= 50 else 0.3,
            lead=_clip(3 * n / 50, 3.0, 5.0),
            horizon=_clip(0.5 * n, 2.0, 100.0),
            max_rise=_clip(decade / (0.12 * n), math.log(1.1), math.log(2.0)),
            max_fall=_clip(decade / (0.2 * n), math.log(1.05), math.log(1.6)),
            warmup=min(5, n // 12),
            patience=max(5, min(20, n // 5)),
        )


class LogPIKLController(KLController):
    r"""
    Proportional-integral control of `log(beta)`, the default.

    For a Gaussian score `log KL = const - 2 log beta`, so both sides are taken in logarithms: the gains then mean the
    same whatever the unit of the score and of the KL. The KL of a policy that moves at a steady pace grows with the
    square of the rollouts, so what is smoothed and extrapolated is the distance `sqrt(KL)` ([Gao et al.
    2022](https://huggingface.co/papers/2210.10760)). With `d` the smoothed distance and `s` its smoothed slope,

        `e_k = clip(log(max((d + lead * s)^2, target / 20) / target), -1, 1)`
        `log(beta) <- log(beta) + clip(gain_p * (e_k - e_{k-1}) + gain_i * e_k, -max_fall, max_rise)`

    A KL that is on its way to the target is left alone (hold): beta does not fall while the KL rises toward the target
    fast enough to reach it within `horizon` rollouts, and does not rise while it falls so. Beta stays within a factor of
    100 of its start. A KL that noise explains as zero counts as zero; one significantly below zero never moves beta, and
    freezes the controller when it stays there for three rollouts.

    Args:
        beta, target, unit: see [`KLController`].
        total_rollouts (`int`, *optional*, defaults to `100`):
            Planned length of the run; smoothing, limits and patience are set from it (see [`LogPISettings`]).
    """

    kind = "log_pi"
    _state_names = (
        *KLController._state_names,
        "initial_beta",
        "total_rollouts",
        "step",
        "average",
        "weight",
        "slope",
        "last_error",
        "negative_count",
        "bound_count",
    )

    def __init__(self, beta: float, target: float, unit: str, total_rollouts: int = 100) -> None:
        super().__init__(beta, target, unit)
        self.initial_beta = self.beta
        self.total_rollouts = total_rollouts
        self.status = "warmup"
        self.step = 0
        self.average = 0.0
        self.weight = 0.0
        self.slope = 0.0
        self.last_error: float | None = None
        self.negative_count = 0
        self.bound_count = 0

    @property
    def settings(self) -> LogPISettings:
        """Constants for the planned number of rollouts."""
        return LogPISettings.for_rollouts(self.total_rollouts)

    def _step(self, measurement: KLMeasurement) -> None:
        if measurement.mean < -2 * measurement.se:
            self.negative_count += 1
            self.status = "frozen" if self.negative_count >= MAX_CONSECUTIVE_INVALID else "hold"
            return
        self.negative_count = 0
        settings, distance = self.settings, self._smooth(math.sqrt(max(measurement.mean, 0.0)))
        goal = math.sqrt(self._goal)
        ahead = distance + settings.lead * self.slope
        error = _clip(2 * math.log(max(ahead / goal, MIN_RELATIVE_DISTANCE)), -1.0, 1.0)
        change = settings.gain_i * error
        if self.last_error is not None:
            change += settings.gain_p * (error - self.last_error)
        self.last_error = error
        self._move(self._held(change, distance / goal, ahead / goal, self.slope / goal), settings)

    def _smooth(self, distance: float) -> float:
        """Bias-corrected exponential average of the distance; its slope is smoothed likewise."""
        alpha = self.settings.ema
        previous = self.average / self.weight if self.weight else None
        self.average = (1 - alpha) * self.average + alpha * distance
        self.weight = (1 - alpha) * self.weight + alpha
        current = self.average / self.weight
        if previous is not None:
            self.slope = (1 - alpha) * self.slope + alpha * (current - previous)
        self.step += 1
        return current

    def _held(self, change: float, distance: float, ahead: float, slope: float) -> float:
        """The change, or zero where waiting is better; distances relative to that of the target."""
        settings = self.settings
        if distance < 1 and self.step <= settings.warmup:
            self.status = "warmup"
            return 0.0
        arrival = distance + settings.horizon * slope
        if distance < 1:
            held = (change > 0 and ahead < 1) or (change < 0 and arrival >= 1)
        else:
            held = change < 0 or (slope < 0 and arrival <= 1)
        self.status = "hold" if held else "tracking"
        return 0.0 if held else change

    def _move(self, change: float, settings: LogPISettings) -> None:
        wanted = self.beta * math.exp(_clip(change, -settings.max_fall, settings.max_rise))
        low, high = self.initial_beta / 100, self.initial_beta * 100
        self.beta = _clip(wanted, low, high)
        at_bound = change != 0 and wanted != self.beta
        self.bound_count = self.bound_count + 1 if at_bound else 0
        if self.bound_count >= settings.patience:
            self.status = "saturated"


def _clip(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)
