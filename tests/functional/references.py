"""Slow float64 references, written from the papers with plain loops over Python floats, and checks against them.

A check takes the implementation as its argument, so that the tests can hand it the library's function and
`test_mutants_are_caught.py` a broken one. The batches are ragged, and their padding holds NaN and infinities.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

RUNS = [(0, 6), (2, 6), (0, 3), (1, 4), (5, 6), (3, 3)]
"""First real token and end of each row of 6: full, left padded, right padded, both, one token, none."""


def ragged_mask(runs: list[tuple[int, int]] = RUNS, width: int = 6) -> Tensor:
    return torch.tensor([[start <= t < end for t in range(width)] for start, end in runs])


def ragged_values(mask: Tensor, seed: int, scale: float = 1.0) -> Tensor:
    """Normal draws in float64 at the real tokens; NaN, inf and -inf in turn at padding."""
    values = torch.randn(mask.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * scale
    junk = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64).repeat(mask.numel())
    return torch.where(mask, values, junk[: mask.numel()].view(mask.shape))


def real_tokens(values: Tensor, mask: Tensor) -> list[list[float]]:
    rows = zip(values.tolist(), mask.tolist(), strict=True)
    return [[x for x, real in zip(row, reals, strict=True) if real] for row, reals in rows]


def flat(values: Tensor, mask: Tensor) -> list[float]:
    return [x for row in real_tokens(values, mask) for x in row]


def scatter(rows: list[list[float]], mask: Tensor) -> Tensor:
    """Inverse of [`real_tokens`], 0 at padding."""
    out = torch.zeros(mask.shape, dtype=torch.float64)
    out[mask] = torch.tensor([x for row in rows for x in row], dtype=torch.float64)
    return out


def assert_equal(actual: Tensor, expected: Tensor | float) -> None:
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-9, atol=1e-12)


def backward(loss: Tensor) -> None:
    """Backward pass in which not even an intermediate gradient may be NaN: anomaly mode has to stay usable."""
    with torch.autograd.set_detect_anomaly(True):
        try:
            loss.backward()
        except RuntimeError as error:
            raise AssertionError(f"NaN inside the backward pass: {error}") from error


def gae_reference(rewards: list[float], values: list[float], gamma: float, lam: float) -> list[float]:
    """`A_t = sum_l (gamma lam)^l delta_{t+l}` as an explicit sum."""
    steps = len(rewards)
    next_values = [*values[1:], 0.0]
    deltas = [rewards[t] + gamma * next_values[t] - values[t] for t in range(steps)]
    return [sum((gamma * lam) ** n * deltas[t + n] for n in range(steps - t)) for t in range(steps)]


def check_gae(gae: Callable) -> None:
    mask = ragged_mask()
    rewards, values = ragged_values(mask, 0), ragged_values(mask, 1)
    for gamma, lam in [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.7, 1.0)]:
        rows = zip(real_tokens(rewards, mask), real_tokens(values, mask), strict=True)
        expected = scatter([gae_reference(r, v, gamma, lam) for r, v in rows], mask)
        advantages, returns = gae(rewards, values, mask, gamma, lam)
        assert_equal(advantages, expected)
        assert_equal(returns, expected + torch.where(mask, values, 0))


def check_explained_variance(explained_variance: Callable) -> None:
    mask = ragged_mask()
    values, returns = ragged_values(mask, 2), ragged_values(mask, 3, scale=3.0) + 2.0
    v, r = (flat(x, mask) for x in (values, returns))
    mean = sum(r) / len(r)
    residuals = [b - a for a, b in zip(v, r, strict=True)]
    residual_mean = sum(residuals) / len(residuals)
    left = sum((x - residual_mean) ** 2 for x in residuals)
    assert_equal(explained_variance(values, returns, mask), 1 - left / sum((x - mean) ** 2 for x in r))


def check_shape_rewards(shape_rewards: Callable) -> None:
    mask = ragged_mask()
    kl = ragged_values(mask, 4)
    scores = torch.tensor([1.5, -2.0, 0.25, 3.0, -0.5, 9.0], dtype=torch.float64)
    beta = 0.3
    terminal, token = [], []
    for score, row in zip(scores.tolist(), real_tokens(kl, mask), strict=True):
        terminal.append([0.0] * (len(row) - 1) + [score - beta * sum(row)] if row else [])
        token.append([-beta * k + (score if t == len(row) - 1 else 0.0) for t, k in enumerate(row)])
    assert_equal(shape_rewards(scores, kl, mask, beta, "terminal"), scatter(terminal, mask))
    assert_equal(shape_rewards(scores, kl, mask, beta, "token"), scatter(token, mask))


def check_masked_whiten(masked_whiten: Callable) -> None:
    mask = ragged_mask()
    values = ragged_values(mask, 5, scale=4.0) + 1.0
    rows = real_tokens(values, mask)
    tokens = flat(values, mask)
    mean = sum(tokens) / len(tokens)
    std = math.sqrt(sum((x - mean) ** 2 for x in tokens) / len(tokens) + 1e-8)
    assert_equal(masked_whiten(values, mask), scatter([[(x - mean) / std for x in row] for row in rows], mask))
    kept = [[(x - mean) / std + mean for x in row] for row in rows]
    assert_equal(masked_whiten(values, mask, shift_mean=False), scatter(kept, mask))
    given = [[(x - 0.5) / math.sqrt(4.0 + 1e-8) for x in row] for row in rows]
    assert_equal(masked_whiten(values, mask, mean=0.5, var=torch.tensor(4.0)), scatter(given, mask))


def check_policy_loss(policy_loss: Callable) -> None:
    """Value, gradient, ratio and clip flags. d ratio / d logprob = ratio, and 0 where the clip decides."""
    mask = ragged_mask()
    old, new, advantages = (ragged_values(mask, seed, scale) for seed, scale in [(6, 1.0), (7, 0.2), (8, 1.0)])
    new = (old + new).requires_grad_()
    epsilon, num_tokens = 0.1, 20.0
    total, ratios, clipped, gradients = 0.0, [], [], []
    triples = zip(*(flat(x, mask) for x in (new, old, advantages)), strict=True)
    for logprob, old_logprob, advantage in triples:
        ratio = math.exp(logprob - old_logprob)
        limited = min(max(ratio, 1 - epsilon), 1 + epsilon)
        total += min(ratio * advantage, limited * advantage)
        ratios.append(ratio)
        clipped.append(limited * advantage < ratio * advantage)
        gradients.append(0.0 if clipped[-1] else -ratio * advantage / num_tokens)
    assert any(clipped) and not all(clipped)
    result = policy_loss(new, old, advantages, mask, epsilon, num_tokens)
    backward(result.loss)
    assert_equal(result.loss, -total / num_tokens)
    assert_equal(result.ratio[mask], torch.tensor(ratios, dtype=torch.float64))
    assert (result.ratio[~mask] == 1).all()
    assert result.clipped[mask].tolist() == clipped
    assert not result.clipped[~mask].any()
    assert_equal(new.grad, scatter([gradients], mask))


def check_value_loss(value_loss: Callable) -> None:
    mask = ragged_mask()
    old, step, returns = (ragged_values(mask, seed) for seed in (9, 10, 11))
    for clip_range in (None, 0.4):
        new = (old + step).requires_grad_()
        num_tokens = 20.0
        total, clipped, gradients = 0.0, [], []
        triples = zip(*(flat(x, mask) for x in (new, old, returns)), strict=True)
        for value, old_value, target in triples:
            limited = value if clip_range is None else min(max(value, old_value - clip_range), old_value + clip_range)
            total += 0.5 * max((value - target) ** 2, (limited - target) ** 2)
            clipped.append((limited - target) ** 2 > (value - target) ** 2)
            gradients.append(0.0 if clipped[-1] else (value - target) / num_tokens)
        assert any(clipped) == (clip_range is not None) and not all(clipped)
        result = value_loss(new, old, returns, mask, clip_range, num_tokens)
        backward(result.loss)
        assert_equal(result.loss, total / num_tokens)
        assert result.clipped[mask].tolist() == clipped
        assert not result.clipped[~mask].any()
        assert_equal(new.grad, scatter([gradients], mask))


def check_entropy_bonus(entropy_bonus: Callable) -> None:
    mask = ragged_mask()
    entropies = ragged_values(mask, 12)
    total = sum(sum(row) for row in real_tokens(entropies, mask))
    leaf = entropies.clone().requires_grad_()
    backward(entropy_bonus(leaf, mask, 20.0))
    assert_equal(entropy_bonus(entropies, mask, 20.0), total / 20.0)
    assert_equal(entropy_bonus(entropies, mask), total / mask.sum().item())
    assert_equal(leaf.grad, mask.double() / 20.0)


def check_preference_loss(preference_loss: Callable) -> None:
    chosen = torch.tensor([1.0, -0.5, 3.0, 0.0], dtype=torch.float64)
    rejected = torch.tensor([0.5, 0.5, -4.0, 0.0], dtype=torch.float64)
    margins = torch.tensor([0.0, 1.0, 2.0, 0.25], dtype=torch.float64)
    for margin in (None, 0.7, margins):
        per_pair = [0.0] * 4 if margin is None else [margin] * 4 if isinstance(margin, float) else margin.tolist()
        triples = zip(chosen.tolist(), rejected.tolist(), per_pair, strict=True)
        losses = [-math.log(1 / (1 + math.exp(-(c - r - m)))) for c, r, m in triples]
        assert_equal(preference_loss(chosen, rejected, margin), sum(losses) / 4)
