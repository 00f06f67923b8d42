"""Per-token estimates of KL(policy || reference) from the log-probabilities of the sampled tokens, in nats.

Source: John Schulman, Approximating KL Divergence, 2020 (http://joschu.net/blog/kl-approx.html). With the tokens
sampled from the policy and `d = logprobs - ref_logprobs`:

| name | estimate        | expectation                        | sign of a single token |
|------|-----------------|------------------------------------|------------------------|
| k1   | d               | the KL, exactly                    | either                 |
| k2   | d^2 / 2         | biased, second order in the change | never negative         |
| k3   | exp(-d) - 1 + d | the KL, exactly                    | never negative         |

Subtract k1 from the reward; watch k3, whose variance is lower near the reference. There is no mask here: estimates at
padding mean nothing, and whatever uses them takes a mask.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ._checks import check_shapes
from ._precision import result_dtype


def _log_ratio(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    check_shapes(2, logprobs=logprobs, ref_logprobs=ref_logprobs)
    return logprobs.to(result_dtype(logprobs, ref_logprobs)) - ref_logprobs


def k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """
    `logprobs - ref_logprobs`: unbiased, high variance, negative where the policy likes the token less.

    Args:
        logprobs (`torch.Tensor`):
            Shape `(B, C)`, log-probabilities of the sampled tokens under the policy, nats.
        ref_logprobs (`torch.Tensor`):
            Shape `(B, C)`, the same under the reference.

    Returns:
        `torch.Tensor`: shape `(B, C)`, nats, at least float32.

    Raises:
        `ValueError`: if a shape is wrong.
    """
    return _log_ratio(logprobs, ref_logprobs)


def k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """
    `(logprobs - ref_logprobs)^2 / 2`: biased, low variance, never negative.

    Args:
        logprobs (`torch.Tensor`):
            Shape `(B, C)`, log-probabilities of the sampled tokens under the policy, nats.
        ref_logprobs (`torch.Tensor`):
            Shape `(B, C)`, the same under the reference.

    Returns:
        `torch.Tensor`: shape `(B, C)`, nats, at least float32.

    Raises:
        `ValueError`: if a shape is wrong.
    """
    return _log_ratio(logprobs, ref_logprobs).square() / 2


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """
    `exp(ref_logprobs - logprobs) - 1 - (ref_logprobs - logprobs)`: unbiased, low variance, never negative.

    It is not clamped: in float32 it becomes inf where the reference likes a sampled token better by more than 88 nats,
    which no healthy batch has, and which a clamp would hide.

    Args:
        logprobs (`torch.Tensor`):
            Shape `(B, C)`, log-probabilities of the sampled tokens under the policy, nats.
        ref_logprobs (`torch.Tensor`):
            Shape `(B, C)`, the same under the reference.

    Returns:
        `torch.Tensor`: shape `(B, C)`, nats, at least float32.

    Raises:
        `ValueError`: if a shape is wrong.
    """
    d = _log_ratio(logprobs, ref_logprobs)
    # expm1, because exp(-d) - 1 keeps no digit of a small d, and small is the normal case.
    return torch.expm1(-d) + d


KL_ESTIMATORS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"k1": k1, "k2": k2, "k3": k3}
