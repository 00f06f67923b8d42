"""Controllers of the KL weight `beta`: plain numbers in, a new `beta` out.

The shaped reward is `score - beta * KL(pi || pi_ref)`. A controller reads the KL measured on each rollout and moves
`beta` so that the KL settles at a target. It knows its unit (nats per sequence or nats per token), stays bounded,
survives bad measurements and is saved with the checkpoint. Standard library only.
"""

import math

from .base import FINDINGS, KL_UNITS, MAX_CONSECUTIVE_INVALID, STATE_VERSION, KLController, KLMeasurement
from .log_pi import LogPIKLController, LogPISettings
from .rules import FixedKLController, MultiplicativeKLController, ZieglerKLController

__all__ = [
    "CONTROLLER_KINDS",
    "FINDINGS",
    "KL_UNITS",
    "MAX_CONSECUTIVE_INVALID",
    "STATE_VERSION",
    "FixedKLController",
    "KLController",
    "KLMeasurement",
    "LogPIKLController",
    "LogPISettings",
    "MultiplicativeKLController",
    "ZieglerKLController",
    "auto_beta",
    "make_kl_controller",
]

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
