"""Sums and moments over the real tokens of a batch.

Padding is removed with `torch.where` before any arithmetic, so it may hold anything: `NaN * 0` is NaN, and a `where`
after the arithmetic still leaks NaN into the gradient. Sums run in float64 (float32 on MPS); results come back as
float32, or as float64 if the values were float64.
"""

import torch
from torch import Tensor

from ._checks import check_masked
from ._precision import accumulation_dtype, result_dtype


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    check_masked(mask, values=values)
    return torch.where(mask, values, 0).to(accumulation_dtype(values.device))


def masked_sum(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """
    Sum over the positions where `mask` is True.

    Args:
        values (`torch.Tensor`):
            Any shape, usually `(B, C)`. Ignored where `mask` is False; NaN is allowed there.
        mask (`torch.Tensor`):
            Bool, the shape of `values`, True = real token.
        dim (`int`, *optional*):
            Dimension to reduce. All dimensions if not given.

    Returns:
        `torch.Tensor`: 0-d without `dim`, else `values` without that dimension. 0 where nothing is selected.

    Raises:
        `ValueError`: if `mask` is not boolean or its shape is not that of `values`.
    """
    return _masked(values, mask).sum(dim=dim).to(result_dtype(values))


def masked_mean(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """
    Mean over the positions where `mask` is True, and 0 (not NaN) where the mask selects nothing.

    Args:
        values (`torch.Tensor`):
            Any shape, usually `(B, C)`. Bool and integers too, so that a fraction is the mean of a flag.
        mask (`torch.Tensor`):
            Bool, the shape of `values`, True = real token.
        dim (`int`, *optional*):
            Dimension to reduce. All dimensions if not given.

    Returns:
        `torch.Tensor`: 0-d without `dim`, else `values` without that dimension.

    Raises:
        `ValueError`: if `mask` is not boolean or its shape is not that of `values`.
    """
    count = mask.sum(dim=dim).clamp(min=1)
    return (_masked(values, mask).sum(dim=dim) / count).to(result_dtype(values))


def masked_var(values: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """
    Biased variance over the positions where `mask` is True, and 0 where the mask selects nothing.

    `Var = sum (x - mean)^2 / n`, divided by n and not by n - 1: OpenAI's `tf.moments`, on which the published
    PPO-RLHF settings rest (Huang et al., The N Implementation Details of RLHF with PPO, 2023).

    Args:
        values (`torch.Tensor`):
            Any shape, usually `(B, C)`.
        mask (`torch.Tensor`):
            Bool, the shape of `values`, True = real token.
        dim (`int`, *optional*):
            Dimension to reduce. All dimensions if not given.

    Returns:
        `torch.Tensor`: 0-d without `dim`, else `values` without that dimension.

    Raises:
        `ValueError`: if `mask` is not boolean or its shape is not that of `values`.
    """
    x = _masked(values, mask)
    keepdim = dim is not None
    count = mask.sum(dim=dim, keepdim=keepdim).clamp(min=1)
    mean = x.sum(dim=dim, keepdim=keepdim) / count
    squares = torch.where(mask, x - mean, 0).square().sum(dim=dim, keepdim=keepdim) / count
    return (squares if dim is None else squares.squeeze(dim)).to(result_dtype(values))


def masked_moments(values: Tensor, mask: Tensor) -> Tensor:
    """
    Count, sum and sum of squares over the positions where `mask` is True.

    Moments add: those of a global batch are the sum of those of the ranks (one all-reduce of three numbers), after
    which [`moments_to_mean_var`] gives the mean and variance that the whole batch would have given.

    Args:
        values (`torch.Tensor`):
            Any shape, usually `(B, C)`.
        mask (`torch.Tensor`):
            Bool, the shape of `values`, True = real token.

    Returns:
        `torch.Tensor`: shape `(3,)`, `[count, sum, sum of squares]`. float64, because the variance is a difference of
        the last two and float32 would lose it to rounding (float32 on MPS, which has nothing wider).

    Raises:
        `ValueError`: if `mask` is not boolean or its shape is not that of `values`.
    """
    x = _masked(values, mask)
    return torch.stack([mask.sum().to(x.dtype), x.sum(), x.square().sum()])


def moments_to_mean_var(moments: Tensor) -> tuple[Tensor, Tensor]:
    """
    Mean and biased variance, `Var = E[x^2] - E[x]^2`, from [`masked_moments`], possibly summed over ranks.

    Args:
        moments (`torch.Tensor`):
            Shape `(3,)`, `[count, sum, sum of squares]`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: mean and variance, both 0-d, both 0 if the count is 0. The variance is
        never negative.

    Raises:
        `ValueError`: if `moments` has another shape.
    """
    if moments.shape != (3,):
        raise ValueError(f"`moments` has shape {tuple(moments.shape)}, expected (3,): count, sum, sum of squares.")
    count = moments[0].clamp(min=1)
    mean = moments[1] / count
    return mean, (moments[2] / count - mean.square()).clamp(min=0)


def masked_whiten(
    values: Tensor,
    mask: Tensor,
    mean: float | Tensor | None = None,
    var: float | Tensor | None = None,
    shift_mean: bool = True,
    eps: float = 1e-8,
) -> Tensor:
    """
    Scale the masked values to variance 1 and, with `shift_mean`, shift them to mean 0.

    `x <- (x - mean) / sqrt(var + eps)`, then `+ mean` if `shift_mean` is False. The meaning of `shift_mean` is that of
    OpenAI and TRL: True removes the mean (advantages), False keeps it (rewards, whose sign must not change).

    Args:
        values (`torch.Tensor`):
            Any shape, usually `(B, C)`.
        mask (`torch.Tensor`):
            Bool, the shape of `values`, True = real token.
        mean (`float` or 0-d `torch.Tensor`, *optional*):
            Mean to use, for example over all ranks. Computed from the masked values if not given.
        var (`float` or 0-d `torch.Tensor`, *optional*):
            Variance that belongs to `mean`. Give both or neither.
        shift_mean (`bool`, *optional*, defaults to `True`):
            Whether the result has mean 0.
        eps (`float`, *optional*, defaults to `1e-8`):
            Added to the variance; equal values give 0 (or their mean), not NaN.

    Returns:
        `torch.Tensor`: the shape of `values`, 0 where `mask` is False.

    Raises:
        `ValueError`: if only one of `mean` and `var` is given, or the mask does not fit.
    """
    if (mean is None) != (var is None):
        missing = "mean" if mean is None else "var"
        raise ValueError(
            f"`{missing}` is None while the other statistic is given; pass both `mean` and `var`, or none."
        )
    x = _masked(values, mask)
    if mean is None:
        mean, var = masked_mean(x, mask), masked_var(x, mask)
    scale = torch.as_tensor(var, dtype=x.dtype, device=x.device).add(eps).rsqrt()
    whitened = (x - mean) * scale
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(mask, whitened, 0).to(result_dtype(values))
