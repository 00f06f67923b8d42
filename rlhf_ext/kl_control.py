"""Controllers of the KL weight `beta`: plain numbers in, a new `beta` out.

The shaped reward is `score - beta * KL(pi || pi_ref)`. A controller reads the KL measured on each rollout and moves
`beta` so that the KL settles at a target. It knows its unit (nats per sequence or nats per token), stays bounded,
survives bad measurements and is saved with the checkpoint. Standard library only.
"""

import math
from dataclasses import dataclass
from typing import Any

STATE_VERSION = 1
KL_UNITS = ("sequence", "token")
MAX_CONSECUTIVE_INVALID = 3

FINDINGS = {
    "invalid": "The measured KL is not a finite number, so beta was left alone: look for NaN in log-probabilities or "
    "rollouts without a single completion token.",
    "frozen": "The measured KL stays more than two standard errors below zero, which a true KL cannot do. The "
    "log-probabilities are not those of the distribution that was sampled: check temperature, top_p, dropout, padding "
    "and which adapter is active. Beta is frozen until the measurement recovers.",
    "saturated": "Beta has been at a bound for many rollouts and the KL is still off its target: beta alone cannot reach "
    "it. Above the target lower the learning rate or the number of epochs; below it raise them, or lower the target.",
}


@dataclass(frozen=True)
class KLMeasurement:
    r"""
    The KL to the reference, measured on one rollout with the k1 estimator `mean(log pi - log pi_ref)`.

    Args:
        mean (`float`):
            Mean over sequences, in the controller's unit: nats per sequence, or nats per token.
        std (`float`):
            Standard deviation over sequences, same unit; 0 where there is a single sequence.
        num_sequences (`int`):
            Number of sequences in the whole rollout, all ranks together.
    """

    mean: float
    std: float
    num_sequences: int

    @property
    def se(self) -> float:
        """Standard error of the mean, `std / sqrt(num_sequences)`."""
        return self.std / math.sqrt(self.num_sequences)

    @property
    def is_valid(self) -> bool:
        """Whether every number is finite and at least one sequence was measured."""
        return self.num_sequences > 0 and math.isfinite(self.mean) and math.isfinite(self.std) and self.std >= 0


class KLController:
    r"""
    Base of the controllers, and what the trainer holds. Call [`~KLController.update`] once per rollout, after the
    rewards of that rollout were computed with the present `beta`.

    Args:
        beta (`float`):
            Initial KL weight, in units of score per nat of sequence KL whatever the unit of the target.
        target (`float`, *optional*):
            KL to hold, in nats per `unit`.
        unit (`str`, *optional*):
            `"sequence"` or `"token"`.

    Attributes:
        status (`str`): what the last update did: `"fixed"`, `"tracking"` (beta follows the rule), `"hold"` (the rule
            chose to wait), `"warmup"`, `"saturated"` (beta has been stuck at a bound), `"invalid"` (measurement not
            finite, beta kept) or `"frozen"` (KL impossibly negative, beta kept).
    """

    kind = "base"
    _state_names: tuple[str, ...] = ("beta", "status", "invalid_count")

    def __init__(self, beta: float, target: float | None = None, unit: str | None = None) -> None:
        self.beta = float(beta)
        self.target = None if target is None else float(target)
        self.unit = unit
        self.status = "tracking"
        self.invalid_count = 0

    @property
    def wants_stop(self) -> bool:
        """Whether three measurements in a row were invalid: training is broken, and beta cannot mend it."""
        return self.invalid_count >= MAX_CONSECUTIVE_INVALID

    @property
    def finding(self) -> str | None:
        """What is wrong and what to do about it, in a sentence; `None` when nothing is."""
        return FINDINGS.get(self.status)

    def update(self, measurement: KLMeasurement) -> float:
        r"""
        Takes the KL of one rollout and moves `beta`.

        Args:
            measurement (`KLMeasurement`): KL of the rollout whose rewards used the present `beta`.

        Returns:
            `float`: the new `beta`, always finite; unchanged when the measurement is invalid.
        """
        if not measurement.is_valid:
            self.invalid_count += 1
            self.status = "invalid"
            return self.beta
        self.invalid_count = 0
        self._step(measurement)
        return self.beta

    def _step(self, measurement: KLMeasurement) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Returns everything the next update depends on, as plain values that survive JSON bit for bit."""
        header = {"version": STATE_VERSION, "kind": self.kind, "unit": self.unit, "target": self.target}
        return header | {name: getattr(self, name) for name in self._state_names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        r"""
        Continues from a saved state, bit for bit.

        Args:
            state (`dict`): what [`~KLController.state_dict`] returned.

        Raises:
            ValueError: the state is of another version, kind, unit or target, or is incomplete.
        """
        for name, own in (
            ("version", STATE_VERSION),
            ("kind", self.kind),
            ("unit", self.unit),
            ("target", self.target),
        ):
            saved = state.get(name)
            if saved != own:
                raise ValueError(
                    f"The saved KL controller has {name}={saved!r}, this run has {name}={own!r}. Resume with the saved "
                    f"setting, or leave the saved controller state out and start a new controller from its "
                    f"beta={state.get('beta')!r}."
                )
        missing = [name for name in self._state_names if name not in state]
        if missing:
            raise ValueError(
                f"The saved KL controller lacks {missing}: the checkpoint is incomplete, use an earlier one."
            )
        for name in self._state_names:
            setattr(self, name, state[name])


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
        error = min(max(measurement.mean / self.target - 1, -0.2), 0.2)
        self.beta = self.beta * (1 + error * measurement.num_sequences / self.horizon)
        self.status = "tracking"


class MultiplicativeKLController(KLController):
    r"""
    Leaves `beta` alone inside a band around the target; outside, multiplies or divides it. With
    `e = log(KL / target)`: above `(1 + band) * target`, `beta <- beta * factor` at once; below
    `(1 - band) * target`, `beta <- beta * factor ** max(e, -1) ** smooth`, a division whose size grows with
    the error, so that the policy is released smoothly.

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
        ratio = measurement.mean / self.target
        self.status = "hold"
        if ratio > 1 + self.band:
            self._scale(self.factor)
        elif 0 <= ratio < 1 - self.band:
            self._scale(self.factor ** max(math.log(max(ratio, math.exp(-1))), -1.0))

    def _scale(self, factor: float) -> None:
        self.beta = self.beta * factor
        self.status = "tracking"


@dataclass(frozen=True)
class LogPISettings:
    """
    Constants of [`LogPIKLController`], fitted to the planned number of rollouts `N`. Tuned on the simulated plants of
    `benchmarks/kl_plants.py`.

    Args:
        gain_p (`float`): Answer to a change of the error. The plant's own gain is -2 (KL goes as beta^-2), so that 0.5
            would cancel a step exactly; 1.5 brakes before the target, which the lag of a few rollouts requires.
        gain_i (`float`): Answer to a lasting error per rollout: `6 / N`, so that a fifth of a run removes it.
        ema (`float`): Weight of the newest measurement; short runs cannot wait for a long average.
        lead (`float`): Rollouts by which the smoothed KL is extrapolated; optimizers with momentum go on that long.
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
            gain_p=1.5,
            gain_i=_clip(6 / n, 0.05, 0.25),
            ema=0.6 if n <= 50 else 0.3,
            lead=_clip(3 * n / 50, 3.0, 5.0),
            horizon=_clip(0.2 * n, 2.0, 20.0),
            max_rise=_clip(decade / (0.12 * n), math.log(1.1), math.log(2.0)),
            max_fall=_clip(decade / (0.2 * n), math.log(1.05), math.log(1.6)),
            warmup=min(5, n // 12),
            patience=max(5, min(20, n // 5)),
        )


class LogPIKLController(KLController):
    r"""
    Proportional-integral control of `log(beta)`, the default.

    For a Gaussian score `log KL = const - 2 log beta`, so both sides are taken in logarithms: the gains then mean the
    same whatever the unit of the score and of the KL. With `m` the smoothed KL and `s` its smoothed slope,

        `e_k = clip(log(max(m + lead * s, target / 20) / target), -1, 1)`
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
        settings, kl = self.settings, self._smooth(max(measurement.mean, 0.0))
        ahead = kl + settings.lead * self.slope
        error = _clip(math.log(max(ahead, 0.05 * self.target) / self.target), -1.0, 1.0)
        change = settings.gain_i * error
        if self.last_error is not None:
            change += settings.gain_p * (error - self.last_error)
        self.last_error = error
        self._move(self._held(change, kl, ahead, settings), settings)

    def _smooth(self, kl: float) -> float:
        """Bias-corrected exponential average of the KL; its slope is smoothed likewise."""
        alpha = self.settings.ema
        previous = self.average / self.weight if self.weight else None
        self.average = (1 - alpha) * self.average + alpha * kl
        self.weight = (1 - alpha) * self.weight + alpha
        current = self.average / self.weight
        if previous is not None:
            self.slope = (1 - alpha) * self.slope + alpha * (current - previous)
        self.step += 1
        return current

    def _held(self, change: float, kl: float, ahead: float, settings: LogPISettings) -> float:
        below = kl < self.target
        if below and self.step <= settings.warmup:
            self.status = "warmup"
            return 0.0
        arrival = kl + settings.horizon * self.slope
        if below:
            wrong_way = change > 0 and ahead < self.target
            held = wrong_way or (change < 0 and arrival >= self.target)
        else:
            held = change < 0 or (self.slope < 0 and arrival <= self.target)
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


CONTROLLER_KINDS = ("fixed", "ziegler", "multiplicative", "log_pi")


def make_kl_controller(
    kind: str,
    beta: float,
    target: float | None = None,
    unit: str | None = None,
    total_rollouts: int | None = None,
) -> KLController:
    r"""
    Build a controller by name.

    Args:
        kind (`str`): one of `CONTROLLER_KINDS`.
        beta (`float`): initial KL weight.
        target (`float`, *optional*): KL to hold, in nats per `unit`; required unless `kind` is `"fixed"`.
        unit (`str`, *optional*): `"sequence"` or `"token"`; required with `target`.
        total_rollouts (`int`, *optional*): planned number of rollouts; `log_pi` fits its speed to it.

    Raises:
        ValueError: unknown kind or unit, negative or infinite beta, target that is missing, not positive or without a
            unit, or an adaptive rule that starts at 0 and could never leave it.
    """
    if kind not in CONTROLLER_KINDS:
        raise ValueError(f"`kind` must be one of {CONTROLLER_KINDS}, got {kind!r}.")
    if not (math.isfinite(beta) and beta >= 0):
        raise ValueError(f"`beta` must be finite and not negative, got {beta}; 0.01 to 0.5 per nat is usual.")
    if target is not None and not (math.isfinite(target) and target > 0):
        raise ValueError(f"`target` must be a positive number of nats, got {target}.")
    if (target is not None or unit is not None) and unit not in KL_UNITS:
        raise ValueError(f"A `target` needs its `unit`, one of {KL_UNITS}; got {unit!r}.")
    if kind == "fixed":
        return FixedKLController(beta, target, unit)
    if target is None or unit is None:
        raise ValueError(f"The {kind!r} controller needs a `target` and its `unit`; without one use 'fixed'.")
    if beta == 0:
        raise ValueError(f"The {kind!r} controller multiplies beta, so it cannot start at 0. Use beta='auto' or 0.05.")
    if kind == "ziegler":
        return ZieglerKLController(beta, target, unit)
    if kind == "multiplicative":
        return MultiplicativeKLController(beta, target, unit)
    return LogPIKLController(beta, target, unit, total_rollouts or 100)


def auto_beta(score_std: float, target: float, unit: str, mean_length: float) -> float:
    r"""
    The KL weight at which the optimum lies at the target, for Gaussian scores: maximising
    `E[score] - beta * KL` gives `KL = score_std^2 / (2 beta^2)`, so `beta = score_std / sqrt(2 * target)`.

    Args:
        score_std (`float`): standard deviation of the scores under the reference, in score units.
        target (`float`): KL to reach, in nats per `unit`.
        unit (`str`): `"sequence"` or `"token"`.
        mean_length (`float`): tokens per completion, which turns a target per token into one per sequence.

    Returns:
        `float`: score units per nat of sequence KL.

    Raises:
        ValueError: the scores have no spread, or the target is not positive.
    """
    if not (math.isfinite(score_std) and score_std > 0):
        raise ValueError(
            f"The scores of the first rollout have a standard deviation of {score_std}, so they carry no signal to weigh "
            "against the KL. Check the reward function, or set beta to a number."
        )
    if unit not in KL_UNITS:
        raise ValueError(f"`unit` must be one of {KL_UNITS}, got {unit!r}.")
    nats = target * mean_length if unit == "token" else target
    if not (math.isfinite(nats) and nats > 0):
        raise ValueError(
            f"`target` must be a positive number of nats, got {target} ({mean_length} tokens per sequence)."
        )
    return score_std / math.sqrt(2 * nats)
