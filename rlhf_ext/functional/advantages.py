"""Generalised advantage estimation and how well the critic explains the returns."""

import torch
from torch import Tensor

from ._checks import check_masked, check_number, check_shapes
from ._precision import accumulation_dtype, result_dtype
from .masked import masked_moments, moments_to_mean_var

# A spread of the returns below a millionth of their size is float32 rounding, not variance.
_ROUNDING_VARIANCE = 1e-12


def _check_contiguous(mask: Tensor) -> None:
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1) + mask[:, :1].sum(1)
    broken = (starts > 1).nonzero().flatten().tolist()
    if broken:
        raise ValueError(
            f"`mask` of shape {tuple(mask.shape)} has gaps between real tokens in rows {broken}, expected one "
            "contiguous run of True in a row (padding on the left or right only)."
        )


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """
    Generalised advantage estimates and returns (Schulman et al., 2015, https://arxiv.org/abs/1506.02438, eq. 16).

    `delta_t = r_t + gamma * V_{t+1} - V_t`, `A_t = sum_l (gamma * lam)^l * delta_{t+l}`, `return_t = A_t + V_t`, with
    `V = 0` after the last real token of a row: the episode ends there, whether by EOS or by truncation.

    Args:
        rewards (`torch.Tensor`):
            Shape `(B, C)`, shaped rewards ([`shape_rewards`]), reward units. Ignored where `mask` is False.
        values (`torch.Tensor`):
            Shape `(B, C)`, the critic's estimate before each token, taken at rollout. Ignored where `mask` is False.
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token, one contiguous run in a row.
        gamma (`float`, *optional*, defaults to `1.0`):
            Discount per token, in `[0, 1]`.
        lam (`float`, *optional*, defaults to `0.95`):
            Lambda, in `[0, 1]`: 0 is the TD error, 1 the discounted return minus the value.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: advantages and returns, both `(B, C)`, 0 at padding, not whitened.

    Raises:
        `ValueError`: if the mask of a row has gaps, `gamma` or `lam` is outside `[0, 1]`, or a shape is wrong.
    """
    check_shapes(2, rewards=rewards, values=values, mask=mask)
    check_masked(mask, rewards=rewards)
    check_number("gamma", gamma, 0.0, 1.0)
    check_number("lam", lam, 0.0, 1.0)
    _check_contiguous(mask)
    dtype = accumulation_dtype(values.device)
    r = torch.where(mask, rewards, 0).to(dtype)
    v = torch.where(mask, values, 0).to(dtype)
    # Padding is 0 here, so the value after the last real token is 0 and nothing reaches a real token from its right.
    next_v = torch.nn.functional.pad(v[:, 1:], (0, 1))
    deltas = r + gamma * next_v - v
    advantage = deltas.new_zeros(len(deltas))
    columns = []
    for delta in reversed(deltas.unbind(1)):
        advantage = delta + gamma * lam * advantage
        columns.append(advantage)
    advantages = torch.stack(columns[::-1], dim=1) if columns else deltas
    # What ran on into padding on the left is dropped.
    advantages = torch.where(mask, advantages, 0)
    out = result_dtype(rewards, values)
    return advantages.to(out), (advantages + v).to(out)


def explained_variance_from_moments(residual_moments: Tensor, return_moments: Tensor) -> Tensor:
    """
    [`explained_variance`] from [`masked_moments`] that may have been summed over micro-batches or ranks.

    Args:
        residual_moments (`torch.Tensor`):
            Shape `(3,)`, moments of `returns - values`.
        return_moments (`torch.Tensor`):
            Shape `(3,)`, moments of `returns`, over the same tokens.

    Returns:
        `torch.Tensor`: 0-d, at most 1; NaN if the returns do not vary.

    Raises:
        `ValueError`: if a shape is not `(3,)`.
    """
    _, residual_var = moments_to_mean_var(residual_moments)
    mean, var = moments_to_mean_var(return_moments)
    varies = var > _ROUNDING_VARIANCE * mean.square()
    return torch.where(varies, 1 - residual_var / var, torch.nan)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """
    Share of the variance of the returns that the critic predicts: `1 - Var(returns - values) / Var(returns)`.

    1 is a perfect critic, 0 one as good as a constant, negative one worse than a constant. If the returns do not vary
    the question has no answer and the result is NaN: 0 would read as a useless critic and raise a false alarm.

    Args:
        values (`torch.Tensor`):
            Shape `(B, C)`, the critic's estimates at rollout.
        returns (`torch.Tensor`):
            Shape `(B, C)`, from [`gae`].
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token.

    Returns:
        `torch.Tensor`: 0-d, at most 1; NaN if the returns do not vary or the mask is empty.

    Raises:
        `ValueError`: if a shape is wrong or `mask` is not boolean.
    """
    check_shapes(2, values=values, returns=returns, mask=mask)
    return explained_variance_from_moments(masked_moments(returns - values, mask), masked_moments(returns, mask))
