import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import (
    check_entropy_bonus,
    check_policy_loss,
    check_preference_loss,
    check_value_loss,
    ragged_mask,
    ragged_values,
)

from rlhf_ext.functional import (
    entropy_bonus,
    policy_loss,
    preference_loss,
    value_loss,
)

NAN = math.nan
ONE_ROW = torch.ones(1, 4, dtype=torch.bool)


def as_tensor(row):
    return torch.tensor([row], dtype=torch.float64)


def test_policy_loss_by_hand():
    # ratio 1.5, 1.5, 0.5, 0.5; advantage 1, -1, 1, -1; epsilon 0.2
    # min(1.5, 1.2) = 1.2 clipped; min(-1.5, -1.2) = -1.5; min(0.5, 0.8) = 0.5; min(-0.5, -0.8) = -0.8 clipped
    # sum -0.6, loss 0.6 / 4 = 0.15; gradient -ratio * A / 4 where not clipped: 0.375 and -0.125
    logprobs = as_tensor([1.5, 1.5, 0.5, 0.5]).log().requires_grad_()
    result = policy_loss(logprobs, torch.zeros(1, 4), as_tensor([1.0, -1.0, 1.0, -1.0]), ONE_ROW, 0.2)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(0.15, rel=1e-9)
    assert result.ratio[0].tolist() == pytest.approx([1.5, 1.5, 0.5, 0.5], rel=1e-9)
    assert result.clipped[0].tolist() == [True, False, False, True]
    assert logprobs.grad[0].tolist() == pytest.approx([0.0, 0.375, -0.125, 0.0], rel=1e-9)


def test_value_loss_by_hand():
    # old 0, clip 0.5. value 2, return 3: clipped to 0.5, error 6.25 > 1, clip decides. value 2, return 0: 4 > 0.25
    # value 0.2, return 1: inside the range, 0.64. value 1, return 1: clipped 0.25 > 0
    # sum 6.25 + 4 + 0.64 + 0.25 = 11.14, / 2 / 4 = 1.3925; gradient (V - R) / 4 where not clipped: 0.5, -0.2
    values = as_tensor([2.0, 2.0, 0.2, 1.0]).requires_grad_()
    result = value_loss(values, torch.zeros(1, 4), as_tensor([3.0, 0.0, 1.0, 1.0]), ONE_ROW, clip_range=0.5)
    result.loss.backward()
    assert result.loss.item() == pytest.approx(1.3925, rel=1e-9)
    assert result.clipped[0].tolist() == [True, False, False, True]
    assert values.grad[0].tolist() == pytest.approx([0.0, 0.5, -0.2, 0.0], rel=1e-9)


def test_value_loss_without_clipping_by_hand():
    # errors -1, 2, -0.8, 0: 1 + 4 + 0.64 = 5.64, / 2 / 4 = 0.705
    values, returns = as_tensor([2.0, 2.0, 0.2, 1.0]), as_tensor([3.0, 0.0, 1.0, 1.0])
    result = value_loss(values, torch.full((1, 4), 50.0), returns, ONE_ROW)
    assert result.loss.item() == pytest.approx(0.705, rel=1e-9)
    assert not result.clipped.any()


def test_entropy_by_hand():
    # 1 + 2 = 3 over two tokens
    assert entropy_bonus(torch.tensor([[1.0, 2.0, NAN]]), torch.tensor([[True, True, False]])).item() == 1.5


def test_preference_loss_by_hand():
    # equal scores: log 2 = 0.693147; difference 2 - margin 1 = 1: log(1 + exp(-1)) = 0.313262
    assert preference_loss(torch.zeros(1), torch.zeros(1)).item() == pytest.approx(0.693147, abs=1e-6)
    assert preference_loss(torch.tensor([2.0]), torch.zeros(1), 1.0).item() == pytest.approx(0.313262, abs=1e-6)


def test_policy_loss_agrees_with_plain_loops():
    check_policy_loss(policy_loss)


def test_value_loss_agrees_with_plain_loops():
    check_value_loss(value_loss)


def test_entropy_agrees_with_plain_loops():
    check_entropy_bonus(entropy_bonus)


def test_preference_loss_agrees_with_plain_loops():
    check_preference_loss(preference_loss)


def test_at_ratio_one_the_loss_is_minus_the_mean_advantage_and_the_gradient_is_the_policy_gradient():
    mask = ragged_mask()
    logprobs, advantages = ragged_values(mask, 40).requires_grad_(), ragged_values(mask, 41)
    result = policy_loss(logprobs, logprobs.detach(), advantages, mask, 0.1)
    result.loss.backward()
    count = mask.sum().item()
    assert result.loss.item() == pytest.approx(-advantages[mask].sum().item() / count, rel=1e-9)
    assert (result.ratio == 1).all() and not result.clipped.any()
    torch.testing.assert_close(logprobs.grad[mask], -advantages[mask] / count, rtol=1e-9, atol=1e-12)


def test_values_that_have_not_moved_are_not_clipped():
    # old + clip(new - old) would differ from new by rounding, and count as clipped
    mask = torch.ones(8, 64, dtype=torch.bool)
    old = ragged_values(mask, 42).float() * 7
    returns = ragged_values(mask, 43).float()
    assert not value_loss(old, old, returns, mask, clip_range=0.1).clipped.any()
    assert not value_loss(old + 0.05, old, returns, mask, clip_range=0.1).clipped.any()


@pytest.mark.parametrize("jump", [1000.0, -1000.0, math.inf])
def test_a_broken_batch_gives_a_huge_but_finite_loss(jump):
    logprobs = torch.tensor([[-1.0 + jump]], requires_grad=True)
    result = policy_loss(logprobs, torch.tensor([[-1.0]]), torch.tensor([[-1.0]]), ONE_ROW[:, :1], 0.1)
    result.loss.backward()
    # exp(20) = 4.851652e8, exp(-20) = 2.061154e-9
    assert result.ratio.item() == pytest.approx(4.851652e8 if jump > 0 else 2.061154e-9, rel=1e-5)
    assert result.loss.isfinite() and logprobs.grad.isfinite().all()


def test_nothing_but_the_trained_tensor_gets_a_gradient():
    mask = ragged_mask()
    tensors = [ragged_values(mask, seed).requires_grad_() for seed in (44, 45, 46)]
    policy_loss(*tensors, mask, 0.1).loss.backward()
    assert tensors[0].grad is not None and tensors[1].grad is None and tensors[2].grad is None
    tensors[0].grad = None
    value_loss(*tensors, mask, 0.1).loss.backward()
    assert tensors[0].grad is not None and tensors[1].grad is None and tensors[2].grad is None


def test_half_precision_losses_are_computed_in_float32():
    # bfloat16 has steps of 1/16 near 10 and 1/8 near 20
    def half(x):
        return torch.tensor([[x]], dtype=torch.bfloat16)

    mask = ONE_ROW[:, :1]
    # 1/8 + 1/1024 is a bfloat16, 10 minus it is not
    ratio = policy_loss(half(-0.1259765625), half(-10.0), half(1.0), mask, 0.1).ratio
    assert ratio.dtype == torch.float32
    assert ratio.log().item() == pytest.approx(10 - 0.1259765625, rel=1e-6)
    # clipped at 10 + 0.1: (10.1 - 30)^2 / 2 = 198.005
    assert value_loss(half(20.0), half(10.0), half(30.0), mask, 0.1).loss.item() == pytest.approx(198.005, rel=1e-6)
    # (20.125 - 0.1259765625)^2 / 2 = 199.98047
    assert value_loss(half(20.125), half(0.0), half(0.1259765625), mask).loss.item() == pytest.approx(
        199.98047, rel=1e-6
    )
    # log(1 + exp(d)) = d + exp(-d) up to exp(-2 d), d = 10 - 0.1259765625 = 9.8740234: 9.8740749
    loss = preference_loss(half(0.1259765625)[0], half(10.0)[0])
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(9.8740749, rel=1e-6)


def test_the_ratio_carries_no_graph():
    logprobs = torch.zeros(1, 4, requires_grad=True)
    assert not policy_loss(logprobs, torch.zeros(1, 4), torch.ones(1, 4), ONE_ROW, 0.1).ratio.requires_grad


def policy(tensors, mask, n):
    return policy_loss(*tensors, mask, 0.1, n).loss


def value(tensors, mask, n):
    return value_loss(*tensors, mask, 0.3, n).loss


def entropy(tensors, mask, n):
    return entropy_bonus(tensors[0], mask, n)


def gradient_of(loss, tensors, mask, n):
    leaf = tensors[0].clone().requires_grad_()
    total = loss([leaf, *tensors[1:]], mask, n)
    total.backward()
    return total.detach(), leaf.grad


@pytest.mark.parametrize("loss", [policy, value, entropy])
@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), sizes=st.sampled_from([[2, 4], [1, 2, 3], [5, 1], [1] * 6]))
def test_micro_batches_and_ranks_add_up_to_the_whole(loss, seed, sizes):
    mask = ragged_mask()
    tensors = [torch.where(mask, ragged_values(mask, seed + i, 0.3), NAN).float() for i in range(3)]
    num_tokens = mask.sum()
    whole, whole_gradient = gradient_of(loss, tensors, mask, None)
    pieces = zip(*(tensor.split(sizes) for tensor in (*tensors, mask)), strict=True)
    parts = [gradient_of(loss, list(piece[:-1]), piece[-1], num_tokens) for piece in pieces]
    torch.testing.assert_close(sum(part for part, _ in parts), whole, rtol=1e-6, atol=1e-6)
    gradient = torch.cat([g for _, g in parts])
    torch.testing.assert_close(gradient, whole_gradient, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", [policy, value, entropy])
@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000), left=st.integers(0, 3), right=st.integers(0, 3), junk=st.sampled_from([NAN, math.inf])
)
def test_wider_padding_changes_neither_loss_nor_gradient(loss, seed, left, right, junk):
    mask = ragged_mask()
    tensors = [ragged_values(mask, seed + i, 0.3) for i in range(3)]
    wide_mask = torch.nn.functional.pad(mask, (left, right))
    wide = [torch.nn.functional.pad(x, (left, right), value=junk) for x in tensors]
    narrow_loss, narrow_gradient = gradient_of(loss, tensors, mask, None)
    wide_loss, wide_gradient = gradient_of(loss, wide, wide_mask, None)
    torch.testing.assert_close(wide_loss, narrow_loss, rtol=1e-9, atol=1e-12)
    padded = torch.nn.functional.pad(narrow_gradient, (left, right))
    torch.testing.assert_close(wide_gradient, padded, rtol=1e-9, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0.01, 0.99))
def test_clipping_is_pessimistic_and_acts_only_where_it_takes_the_gradient(log_ratio, advantage, epsilon):
    logprobs = as_tensor([log_ratio]).requires_grad_()
    mask = ONE_ROW[:, :1]
    result = policy_loss(logprobs, as_tensor([0.0]), as_tensor([advantage]), mask, epsilon)
    result.loss.backward()
    assert result.loss.item() >= -math.exp(log_ratio) * advantage - 1e-12
    if result.clipped.item():
        assert logprobs.grad.item() == 0
        assert abs(math.exp(log_ratio) - 1) > epsilon * (1 - 1e-9)
    else:
        assert logprobs.grad.item() == pytest.approx(-math.exp(log_ratio) * advantage, rel=1e-9, abs=1e-300)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=1, max_size=6), st.floats(-10, 10))
def test_preference_loss_sees_only_differences_and_swapping_costs_their_mean(pairs, shift):
    chosen, rejected = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    loss = preference_loss(chosen, rejected)
    torch.testing.assert_close(preference_loss(chosen + shift, rejected + shift), loss, rtol=1e-9, atol=1e-9)
    # -log s(d) + log s(-d) = -d
    swapped = preference_loss(rejected, chosen)
    torch.testing.assert_close(loss - swapped, -(chosen - rejected).mean(), rtol=1e-9, atol=1e-9)


def test_a_micro_batch_without_tokens_costs_nothing():
    nothing = torch.zeros(1, 4, dtype=torch.bool)
    for num_tokens in (None, 0, torch.tensor(0), 7):
        assert entropy_bonus(torch.full((1, 4), NAN), nothing, num_tokens).item() == 0


@pytest.mark.parametrize("num_tokens", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64)])
def test_a_token_count_may_be_a_fraction_and_keeps_the_type_of_the_loss(num_tokens):
    # a trainer that averages over ranks divides by tokens / ranks; 4 * 0.25 / 0.5 = 2
    loss = entropy_bonus(torch.full((1, 4), 0.25), ONE_ROW, num_tokens)
    assert loss.item() == 2.0
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("num_tokens", [0, -3.0, NAN, torch.tensor(0)])
def test_a_token_count_that_is_not_positive_is_refused(num_tokens):
    with pytest.raises(ValueError, match=r"`num_tokens` is .* holds 4 tokens"):
        entropy_bonus(torch.zeros(1, 4), ONE_ROW, num_tokens)


def test_a_token_count_per_row_is_refused():
    with pytest.raises(ValueError, match=r"`num_tokens` has shape \(1,\)"):
        entropy_bonus(torch.zeros(1, 4), ONE_ROW, torch.tensor([4]))


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, NAN])
def test_a_clip_range_outside_the_unit_interval_is_refused(epsilon):
    with pytest.raises(ValueError, match=f"`epsilon` is {epsilon}"):
        policy_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4), ONE_ROW, epsilon)


def test_a_value_clip_range_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"`clip_range` is 0\.0"):
        value_loss(torch.zeros(1, 4), torch.zeros(1, 4), torch.zeros(1, 4), ONE_ROW, clip_range=0.0)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match=r"`chosen_scores` .* at least one pair"):
        preference_loss(torch.zeros(0), torch.zeros(0))
