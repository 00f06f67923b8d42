"""Log-probabilities and entropies of tokens on a CPU, in tiles of the vocabulary, with few passes over a tile."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .products import linear

TILE_WORDS = 4096
"""Words of the vocabulary that are taken at a time."""
TILE_TOKENS = 512
"""Tokens that are taken at a time; with these words, a tile of logits is 8 MiB."""


class TokenLogProbs(torch.autograd.Function):
    """
    Of the distribution `softmax(scale * hidden @ weight.T)`: the log-probability of each row's token, and its entropy, in
    nats. No tensor as wide as the vocabulary is made.

    Where the weight is frozen, the forward pass also gathers the mean of the words' vectors under the distribution, by the
    running maximum of [FlashAttention](https://huggingface.co/papers/2205.14135): the gradient of the log-probability of
    token `y` is `scale * (w_y - sum_v p_v w_v)`, so that the backward pass does not make the logits again. It has to where
    the entropy has a gradient, or the weight.

    Args:
        hidden (`torch.Tensor` of shape `(N, H)`, float32):
            Hidden states.
        weight (`torch.Tensor` of shape `(V, H)`, float32):
            Vectors of the words.
        targets (`torch.Tensor` of shape `(N,)`):
            Token of each row.
        scale (`float`):
            Factor of the logits, such as one over the temperature.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: log-probabilities and entropies `(N,)`.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """See the class."""
        # The entropy is often logged only; it then has no gradient, instead of one of zeros.
        ctx.set_materialize_grads(False)
        gathers = ctx.needs_input_grad[0] and not ctx.needs_input_grad[1]
        log_z, entropy = hidden.new_empty(2, len(hidden))
        direction = torch.empty_like(hidden) if gathers else None
        for rows in _chunks(len(hidden), TILE_TOKENS):
            mean = None if direction is None else direction[rows]
            log_z[rows], entropy[rows] = _statistics(hidden[rows] * scale, weight, mean)
        vectors = weight[targets]
        logprobs = (hidden * vectors).sum(1).mul_(scale).sub_(log_z)
        if direction is not None:
            direction = vectors.sub_(direction)
        ctx.scale = scale
        ctx.save_for_backward(hidden, weight, targets, log_z, entropy, direction)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Gradients of `hidden` and, where it is trained, `weight`."""
        hidden, weight, targets, log_z, entropy, direction = ctx.saved_tensors
        of_logprobs, of_entropy = gradients
        if direction is not None and of_entropy is None:
            return None if of_logprobs is None else direction * (ctx.scale * of_logprobs)[:, None], None, None, None
        to_hidden = torch.zeros_like(hidden)
        to_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        if of_logprobs is None:
            of_logprobs = torch.zeros_like(log_z)
        for rows in _chunks(len(hidden), TILE_TOKENS):
            scaled = hidden[rows] * ctx.scale
            factors: list[Any] = [
                None if x is None else x[rows, None] for x in (of_logprobs, of_entropy, log_z, entropy)
            ]
            for words in _chunks(len(weight), TILE_WORDS):
                tile = _to_logits(linear(scaled, weight[words]), *factors)
                to_hidden[rows].add_(linear(tile, weight[words].T))
                if to_weight is not None:
                    to_weight[words].add_(linear(tile.T, scaled.T))
                del tile
            to_hidden[rows].addcmul_(weight[targets[rows]], of_logprobs[rows, None])
        if to_weight is not None:
            to_weight.index_add_(0, targets, hidden * (ctx.scale * of_logprobs)[:, None])
        return to_hidden.mul_(ctx.scale), to_weight, None, None


def _chunks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _statistics(scaled: Tensor, weight: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Log-normalisers and entropies `(n,)` of logits `scaled @ weight.T`; the mean of the weight's rows into `mean`."""
    top = scaled.new_full((len(scaled), 1), -torch.inf)
    total, weighted = torch.zeros_like(top), torch.zeros_like(top)
    if mean is not None:
        mean.zero_()
    for words in _chunks(len(weight), TILE_WORDS):
        logits = linear(scaled, weight[words])
        before, top = top, torch.maximum(top, logits.amax(1, keepdim=True))
        shrink = (before - top).exp_()
        powers = (logits - top).exp_()
        total.mul_(shrink).add_(powers.sum(1, keepdim=True))
        weighted.mul_(shrink).add_((powers[:, None] @ logits[:, :, None])[:, 0])
        if mean is not None:
            mean.mul_(shrink).add_(linear(powers, weight[words].T))
        # Before the next are made.
        del logits, powers
    if mean is not None:
        mean.div_(total)
    log_z = top + total.log()
    return log_z.squeeze(1), (log_z - weighted / total).squeeze(1)


def _to_logits(
    logits: Tensor, of_logprobs: Tensor, of_entropy: Tensor | None, log_z: Tensor, entropy: Tensor
) -> Tensor:
    """
    Gradient of the logits, in their place, without that at the token itself:
    `-p * (g + h * (log p + H))` for gradients `g` of the log-probability and `h` of the entropy `H`.
    """
    logits.sub_(log_z)
    if of_entropy is None:
        return logits.exp_().mul_(-of_logprobs)
    powers = logits.exp()
    return logits.add_(entropy).mul_(-of_entropy).sub_(of_logprobs).mul_(powers)
