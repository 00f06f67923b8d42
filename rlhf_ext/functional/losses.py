"""Losses of PPO and of the reward model.

Token losses are a masked sum divided by `num_tokens`. Give every micro-batch and every rank the token count of the
whole optimizer step, and their losses and gradients add up to those of the undivided batch; a mean per micro-batch
would weigh a token by how short its neighbours are.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ._checks import check_masked, check_number, check_shapes
from ._precision import result_dtype
from .masked import masked_sum

MAX_LOG_RATIO = 20.0
"""Bound on `|logprobs - old_logprobs|`: exp(20) = 4.9e8 is plainly wrong in a log, and finite."""


class PolicyLoss(NamedTuple):
    """
    What [`policy_loss`] returns.

    Args:
        loss (`torch.Tensor`):
            0-d, to minimise.
        ratio (`torch.Tensor`):
            Shape `(B, C)`, new over old probability, detached, 1 at padding.
        clipped (`torch.Tensor`):
            Bool, shape `(B, C)`, True where the clip took the gradient away, False at padding.
    """

    loss: Tensor
    ratio: Tensor
    clipped: Tensor


class ValueLoss(NamedTuple):
    """
    What [`value_loss`] returns.

    Args:
        loss (`torch.Tensor`):
            0-d, to minimise.
        clipped (`torch.Tensor`):
            Bool, shape `(B, C)`, True where the clip took the gradient away, False at padding.
    """

    loss: Tensor
    clipped: Tensor


def _per_token(total: Tensor, mask: Tensor, num_tokens: float | Tensor | None) -> Tensor:
    """`total / num_tokens`; without any token anywhere, as when all samples are masked out, the loss is 0."""
    if num_tokens is None:
        return total / mask.sum().clamp(min=1)
    if isinstance(num_tokens, Tensor) and num_tokens.dim() != 0:
        raise ValueError(f"`num_tokens` has shape {tuple(num_tokens.shape)}, expected a number or a 0-d tensor.")
    if num_tokens > 0:
        return (total / num_tokens).to(total.dtype)
    if num_tokens == 0 and not mask.any():
        return total
    raise ValueError(
        f"`num_tokens` is {float(num_tokens)} while `mask` holds {int(mask.sum())} tokens, expected the number of "
        "tokens of the whole optimizer step."
    )


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    epsilon: float,
    num_tokens: float | Tensor | None = None,
) -> PolicyLoss:
    """
    Clipped surrogate objective of PPO (Schulman et al., 2017, https://arxiv.org/abs/1707.06347, eq. 7), negated.

    `L = -sum_t min(ratio_t * A_t, clip(ratio_t, 1 - epsilon, 1 + epsilon) * A_t) / num_tokens` with
    `ratio_t = exp(logprobs_t - old_logprobs_t)`. The log ratio is limited to +-`MAX_LOG_RATIO`, beyond which a token
    gives no gradient. Gradients flow to `logprobs` only.

    Args:
        logprobs (`torch.Tensor`):
            Shape `(B, C)`, log-probabilities of the sampled tokens under the policy being trained, nats.
        old_logprobs (`torch.Tensor`):
            Shape `(B, C)`, the same as stored at rollout.
        advantages (`torch.Tensor`):
            Shape `(B, C)`, usually whitened.
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token. Everything else is ignored where it is False, NaN and inf too.
        epsilon (`float`):
            Clip range, in `(0, 1)`.
        num_tokens (`float` or 0-d `torch.Tensor`, *optional*):
            Divisor: the tokens of the whole optimizer step. Defaults to the tokens of `mask`.

    Returns:
        [`PolicyLoss`]: loss, ratio and the tokens that were clipped.

    Raises:
        `ValueError`: if `epsilon` is outside `(0, 1)`, `num_tokens` is not positive, or a shape or dtype is wrong.
    """
    check_shapes(2, logprobs=logprobs, old_logprobs=old_logprobs, advantages=advantages, mask=mask)
    check_masked(mask, logprobs=logprobs)
    if not 0 < epsilon < 1:
        raise ValueError(f"`epsilon` is {epsilon}, expected a number in (0, 1).")
    dtype = result_dtype(logprobs, old_logprobs, advantages)
    # `where` on every input, not on the result: the backward pass would multiply the 0 of the mask by NaN on its way.
    log_ratio = torch.where(mask, logprobs.to(dtype) - old_logprobs.detach(), 0)
    weights = torch.where(mask, advantages.detach(), 0)
    ratio = log_ratio.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    unclipped = ratio * weights
    clipped = ratio.clamp(1 - epsilon, 1 + epsilon) * weights
    loss = _per_token(-masked_sum(torch.minimum(unclipped, clipped), mask), mask, num_tokens)
    return PolicyLoss(loss=loss, ratio=ratio.detach(), clipped=clipped < unclipped)


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip_range: float | None = None,
    num_tokens: float | Tensor | None = None,
) -> ValueLoss:
    """
    Squared error of the critic, optionally with the update of each value clipped around its rollout value.

    `L = sum_t max((V_t - R_t)^2, (clip(V_t, V_old_t - c, V_old_t + c) - R_t)^2) / (2 * num_tokens)`; without a clip
    range only the first term. OpenAI baselines' form, as in Ziegler et al., 2019. Gradients flow to `values` only.

    Args:
        values (`torch.Tensor`):
            Shape `(B, C)`, estimates of the critic being trained, reward units.
        old_values (`torch.Tensor`):
            Shape `(B, C)`, the same as stored at rollout.
        returns (`torch.Tensor`):
            Shape `(B, C)`, targets, from [`gae`].
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token. Everything else is ignored where it is False, NaN and inf too.
        clip_range (`float`, *optional*):
            Largest change c of a value, reward units, positive. No clipping if not given.
        num_tokens (`float` or 0-d `torch.Tensor`, *optional*):
            Divisor: the tokens of the whole optimizer step. Defaults to the tokens of `mask`.

    Returns:
        [`ValueLoss`]: loss and the tokens that were clipped.

    Raises:
        `ValueError`: if `clip_range` or `num_tokens` is not positive, or a shape or dtype is wrong.
    """
    check_shapes(2, values=values, old_values=old_values, returns=returns, mask=mask)
    check_masked(mask, values=values)
    dtype = result_dtype(values, old_values, returns)
    current = torch.where(mask, values, 0).to(dtype)
    old = torch.where(mask, old_values.detach(), 0).to(dtype)
    target = torch.where(mask, returns.detach(), 0)
    error = (current - target).square()
    clipped_error = error
    if clip_range is not None:
        check_number("clip_range", clip_range, 0.0, above_low=True)
        # Clamping the value, not the difference, leaves it bit-identical inside the range.
        clipped_error = (current.clamp(old - clip_range, old + clip_range) - target).square()
    loss = _per_token(0.5 * masked_sum(torch.maximum(error, clipped_error), mask), mask, num_tokens)
    return ValueLoss(loss=loss, clipped=clipped_error > error)


def entropy_bonus(entropies: Tensor, mask: Tensor, num_tokens: float | Tensor | None = None) -> Tensor:
    """
    Mean entropy per token, to be multiplied by a coefficient and SUBTRACTED from the loss.

    Args:
        entropies (`torch.Tensor`):
            Shape `(B, C)`, entropy of the policy's distribution at each token, nats.
        mask (`torch.Tensor`):
            Bool, shape `(B, C)`, True = real token.
        num_tokens (`float` or 0-d `torch.Tensor`, *optional*):
            Divisor: the tokens of the whole optimizer step. Defaults to the tokens of `mask`.

    Returns:
        `torch.Tensor`: 0-d, nats per token.

    Raises:
        `ValueError`: if `num_tokens` is not positive, or a shape or dtype is wrong.
    """
    check_shapes(2, entropies=entropies, mask=mask)
    return _per_token(masked_sum(entropies, mask), mask, num_tokens)


def preference_loss(chosen_scores: Tensor, rejected_scores: Tensor, margin: float | Tensor | None = None) -> Tensor:
    """
    Bradley-Terry loss of the reward model: `-mean log sigmoid(chosen - rejected - margin)`.

    Source: Ouyang et al., InstructGPT, 2022, eq. 1; the margin is that of Touvron et al., Llama 2, 2023, eq. 2.

    Args:
        chosen_scores (`torch.Tensor`):
            Shape `(B,)`, scores of the preferred completions, reward units.
        rejected_scores (`torch.Tensor`):
            Shape `(B,)`, scores of the others, in the same order.
        margin (`float` or `torch.Tensor` of shape `(B,)`, *optional*):
            How far apart the scores should be, reward units.

    Returns:
        `torch.Tensor`: 0-d, nats; log 2 if the two scores are equal and there is no margin.

    Raises:
        `ValueError`: if a shape is wrong or there is no pair.
    """
    check_shapes(1, chosen_scores=chosen_scores, rejected_scores=rejected_scores)
    if len(chosen_scores) == 0:
        raise ValueError("`chosen_scores` has shape (0,), expected at least one pair.")
    difference = chosen_scores.to(result_dtype(chosen_scores, rejected_scores)) - rejected_scores
    if isinstance(margin, Tensor):
        check_shapes(1, chosen_scores=chosen_scores, margin=margin)
    if margin is not None:
        difference = difference - margin
    return -logsigmoid(difference).mean()
