"""What every controller shares: the measurement, bad-measurement policy, and the saved state."""

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
    def _goal(self) -> float:
        """The target of an adaptive rule, which always has one."""
        assert self.target is not None
        return self.target

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

    def scale(self, factor: float) -> float:
        r"""
        Multiplies `beta`, from which the rule then goes on.

        Args:
            factor (`float`): a positive number.

        Returns:
            `float`: the new `beta`.

        Raises:
            ValueError: the factor is not a positive number.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise ValueError(f"`factor` must be a positive number, got {factor}.")
        self.beta *= factor
        return self.beta

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
