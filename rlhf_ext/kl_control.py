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
        for name, own in (("version", STATE_VERSION), ("kind", self.kind), ("unit", self.unit), ("target", self.target)):
            saved = state.get(name)
            if saved != own:
                raise ValueError(
                    f"The saved KL controller has {name}={saved!r}, this run has {name}={own!r}. Resume with the saved "
                    f"setting, or leave the saved controller state out and start a new controller from its "
                    f"beta={state.get('beta')!r}."
                )
        missing = [name for name in self._state_names if name not in state]
        if missing:
            raise ValueError(f"The saved KL controller lacks {missing}: the checkpoint is incomplete, use an earlier one.")
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
            raise ValueError(f"`horizon` must be a positive number of episodes, got {horizon}; the 2019 value is 10000.")
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
