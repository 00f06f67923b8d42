"""From one score per sequence to one reward per token.

`scores` `(B,)` is what the reward model said; `rewards` `(B, C)` is what the policy is trained on.
"""

from typing import Literal

import torch
from torch import Tensor

from ._checks import check_bool, check_number, check_shapes
from ._precision import result_dtype
from .masked import masked_sum

PLACEMENTS = ("terminal", "token")


def last_token_index(mask: Tensor) -> Tensor:
    """
    Index of the last real token of each row: EOS, or the last token of a truncated completion.

    Args:
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token, EOS included.

    Returns:
        `torch.Tensor`: long, shape `(B,)`, in `[0, C - 1]`; -1 for a row without any token.

    Raises:
        `ValueError`: if `mask` is not boolean or not of rank 2.
    """
    check_bool(mask=mask)
    check_shapes(2, mask=mask)
    at_or_before_last = mask.long().flip(1).cumsum(1) > 0
    return at_or_before_last.sum(1) - 1


def clip_scores(scores: Tensor, clip: float) -> Tensor:
    """
    Limit scores to `[-clip, clip]`, so that one outlier of the reward model does not rule the batch.

    Args:
        scores (`torch.Tensor`):
            Shape `(B,)`, reward units.
        clip (`float`):
            Positive bound, reward units.

    Returns:
        `torch.Tensor`: shape `(B,)`. NaN stays NaN.

    Raises:
        `ValueError`: if `clip` is not positive and finite, or `scores` is not of rank 1.
    """
    check_shapes(1, scores=scores)
    check_number("clip", clip, 0.0, above_low=True)
    return scores.clamp(-clip, clip)


def apply_missing_eos_penalty(scores: Tensor, has_eos: Tensor, penalty: float) -> Tensor:
    """
    Subtract `penalty` from the score of every completion that never produced EOS.

    Subtracting (TRL's convention) keeps what the reward model said about a truncated text; OpenAI's code overwrote it.

    Args:
        scores (`torch.Tensor`):
            Shape `(B,)`, reward units.
        has_eos (`torch.Tensor`):
            Bool, shape `(B,)`, True where the completion ends with EOS.
        penalty (`float`):
            Not negative, reward units.

    Returns:
        `torch.Tensor`: shape `(B,)`.

    Raises:
        `ValueError`: if `penalty` is negative or not finite, or a shape or dtype is wrong.
    """
    check_shapes(1, scores=scores, has_eos=has_eos)
    check_bool(has_eos=has_eos)
    check_number("penalty", penalty, 0.0)
    return torch.where(has_eos, scores, scores - penalty)


def shape_rewards(
    scores: Tensor,
    kl: Tensor,
    mask: Tensor,
    beta: float,
    placement: Literal["terminal", "token"] = "terminal",
) -> Tensor:
    """
    Combine the score of a sequence with the KL penalty of its tokens. T is the index of the last real token.

    - `"terminal"`: `r_t = 0` for `t < T`, `r_T = score - beta * sum_t kl_t`.
    - `"token"`: `r_t = -beta * kl_t`, and the score is added at T (Ouyang et al., InstructGPT, 2022, eq. 2, as
      implemented since Ziegler et al., 2019).

    The sum over a row is the same in both, so with `gamma = 1` is the return from the first token.

    Args:
        scores (`torch.Tensor`):
            Shape `(B,)`, what the reward model said, reward units.
        kl (`torch.Tensor`):
            Shape `(B, C)`, KL estimate per token (see [`k1`]), nats. Ignored where `mask` is False.
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token, EOS included.
        beta (`float`):
            Weight of the penalty, reward units per nat, not negative.
        placement (`str`, *optional*, defaults to `"terminal"`):
            `"terminal"` or `"token"`.

    Returns:
        `torch.Tensor`: shape `(B, C)`, 0 at padding. A row without any token is all 0, its score is dropped.

    Raises:
        `ValueError`: if `placement` is unknown, `beta` is negative or not finite, or a shape or dtype is wrong.
    """
    if placement not in PLACEMENTS:
        raise ValueError(f"`placement` is {placement!r}, expected one of {PLACEMENTS}.")
    check_number("beta", beta, 0.0)
    check_shapes(2, kl=kl, mask=mask)
    check_shapes(1, scores=scores)
    if len(scores) != len(kl):
        raise ValueError(f"`scores` has shape {tuple(scores.shape)}, expected (B,) = ({len(kl)},), the rows of `kl`.")
    kl = kl.to(result_dtype(scores, kl))
    positions = torch.arange(mask.shape[1], device=mask.device)
    is_last = positions == last_token_index(mask)[:, None]
    if placement == "terminal":
        total = scores - beta * masked_sum(kl, mask, dim=1)
        return torch.where(is_last, total[:, None], 0)
    penalty = torch.where(mask, beta * kl, 0)
    return torch.where(is_last, scores[:, None], 0) - penalty
