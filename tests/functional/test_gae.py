import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import check_explained_variance, check_gae, gae_reference, ragged_mask, ragged_values

from rlhf_ext.functional import (
    explained_variance,
    explained_variance_from_moments,
    gae,
    masked_moments,
)

NAN = math.nan


def test_advantages_and_returns_by_hand():
    # rewards 0, 0, 1; values 0.5, 0.4, 0.2; gamma 0.9, lambda 0.5, product 0.45
    # delta_2 = 1 - 0.2 = 0.8 (nothing after the end)           A_2 = 0.8
    # delta_1 = 0.9 * 0.2 - 0.4 = -0.22                         A_1 = -0.22 + 0.45 * 0.8 = 0.14
    # delta_0 = 0.9 * 0.4 - 0.5 = -0.14                         A_0 = -0.14 + 0.45 * 0.14 = -0.077
    rewards = torch.tensor([[0.0, 0.0, 1.0, NAN]])
    values = torch.tensor([[0.5, 0.4, 0.2, 99.0]])
    mask = torch.tensor([[True, True, True, False]])
    advantages, returns = gae(rewards, values, mask, gamma=0.9, lam=0.5)
    torch.testing.assert_close(advantages, torch.tensor([[-0.077, 0.14, 0.8, 0.0]]), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(returns, torch.tensor([[0.423, 0.54, 1.0, 0.0]]), rtol=1e-5, atol=1e-7)


def test_gae_agrees_with_the_explicit_sum():
    check_gae(gae)


def test_lambda_one_is_the_discounted_return_minus_the_value():
    mask = ragged_mask([(0, 6), (0, 6)])
    rewards, values = ragged_values(mask, 30), ragged_values(mask, 31)
    advantages, returns = gae(rewards, values, mask, gamma=0.8, lam=1.0)
    for row in range(2):
        for t in range(6):
            discounted = sum(0.8 ** (n - t) * rewards[row, n].item() for n in range(t, 6))
            assert returns[row, t].item() == pytest.approx(discounted, rel=1e-9, abs=1e-12)
            assert advantages[row, t].item() == pytest.approx(discounted - values[row, t].item(), rel=1e-9, abs=1e-12)


def test_lambda_zero_is_the_td_error():
    mask = ragged_mask([(0, 6)])
    rewards, values = ragged_values(mask, 32), ragged_values(mask, 33)
    advantages, _ = gae(rewards, values, mask, gamma=0.8, lam=0.0)
    r, v = rewards[0].tolist(), [*values[0].tolist(), 0.0]
    assert advantages[0].tolist() == pytest.approx([r[t] + 0.8 * v[t + 1] - v[t] for t in range(6)], rel=1e-9)


def test_a_critic_that_knows_the_return_leaves_no_advantage():
    # undiscounted terminal reward 2: the return from every token is 2
    mask = ragged_mask([(1, 5), (0, 6)])
    rewards = torch.zeros(2, 6)
    rewards[0, 4] = rewards[1, 5] = 2.0
    for lam in (0.0, 0.5, 1.0):
        advantages, returns = gae(rewards, torch.full((2, 6), 2.0), mask, gamma=1.0, lam=lam)
        assert (advantages == 0).all()
        assert (returns == torch.where(mask, 2.0, 0.0)).all()


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=8),
    st.integers(0, 3),
    st.integers(0, 3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_padding_on_either_side_changes_nothing(pairs, left, right, gamma, lam):
    rewards, values = (list(column) for column in zip(*pairs, strict=True))
    padded = [
        torch.tensor([[NAN] * left + row + [math.inf] * right], dtype=torch.float64) for row in (rewards, values)
    ]
    mask = torch.tensor([[False] * left + [True] * len(pairs) + [False] * right])
    advantages, _ = gae(*padded, mask, gamma, lam)
    expected = [0.0] * left + gae_reference(rewards, values, gamma, lam) + [0.0] * right
    assert advantages[0].tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_half_precision_values_give_wide_advantages():
    mask = torch.ones(1, 2, dtype=torch.bool)
    advantages, returns = gae(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, dtype=torch.bfloat16), mask, lam=0.95)
    assert advantages.dtype == returns.dtype == torch.float32
    assert advantages[0].tolist() == pytest.approx([0.95, 1.0], rel=1e-6)


def test_a_long_completion_does_not_lose_digits():
    # 10,000 rewards of 0.1 are 1000; summed one by one in float32 they are 999.9029
    mask = torch.ones(1, 10_000, dtype=torch.bool)
    _, returns = gae(torch.full((1, 10_000), 0.1), torch.zeros(1, 10_000), mask, gamma=1.0, lam=1.0)
    assert returns[0, 0].item() == pytest.approx(1000.0, rel=1e-6)


def test_a_batch_without_columns_gives_empty_advantages():
    empty = torch.zeros(2, 0)
    advantages, returns = gae(empty, empty, empty.bool())
    assert advantages.shape == returns.shape == (2, 0)


def test_a_mask_with_a_gap_is_refused_and_its_rows_are_named():
    mask = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    with pytest.raises(ValueError, match=r"`mask`.*rows \[1\]"):
        gae(torch.zeros(3, 3), torch.zeros(3, 3), mask)


@pytest.mark.parametrize("name", ["gamma", "lam"])
@pytest.mark.parametrize("value", [-0.1, 1.1, NAN])
def test_discounts_outside_the_unit_interval_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` is {value}"):
        gae(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 2).bool(), **{name: value})


def test_explained_variance_by_hand():
    # returns 0, 2, 4: variance 8/3. residuals returns - values = 0, 1, -1: variance 2/3. 1 - 0.25 = 0.75
    returns, values = torch.tensor([[0.0, 2.0, 4.0, NAN]]), torch.tensor([[0.0, 1.0, 5.0, NAN]])
    mask = torch.tensor([[True, True, True, False]])
    assert explained_variance(values, returns, mask).item() == pytest.approx(0.75, rel=1e-9)


def test_explained_variance_agrees_with_plain_loops():
    check_explained_variance(explained_variance)


def test_a_perfect_critic_explains_all_and_a_constant_one_nothing():
    mask = ragged_mask()
    returns = ragged_values(mask, 34)
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask).item() == pytest.approx(0.0, abs=1e-9)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0, rel=1e-9)  # Var(2R) = 4 Var(R)


@pytest.mark.parametrize("constant", [0.0, 0.1, -1234.5])
def test_returns_without_variance_have_no_explained_variance(constant):
    mask = ragged_mask()
    assert explained_variance(torch.randn(6, 6), torch.full((6, 6), constant), mask).isnan()


@pytest.mark.parametrize("unit", [1e-8, 1e8])
def test_explained_variance_does_not_depend_on_the_unit_of_reward(unit):
    mask = ragged_mask()
    values, returns = ragged_values(mask, 37), ragged_values(mask, 38)
    scaled = explained_variance(values * unit, returns * unit, mask)
    torch.testing.assert_close(scaled, explained_variance(values, returns, mask), rtol=1e-9, atol=0)


def test_an_empty_mask_has_no_explained_variance():
    assert explained_variance(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 2).bool()).isnan()


def test_explained_variance_of_ranks_combines_through_moments():
    mask = ragged_mask()
    values, returns = ragged_values(mask, 35), ragged_values(mask, 36) + 5.0
    ranks = list(zip(values.split(3), returns.split(3), mask.split(3), strict=True))
    residual = sum(masked_moments(r - v, m) for v, r, m in ranks)
    total = sum(masked_moments(r, m) for _, r, m in ranks)
    combined = explained_variance_from_moments(residual, total)
    torch.testing.assert_close(combined, explained_variance(values, returns, mask), rtol=1e-9, atol=1e-12)
    mean_of_ranks = torch.stack([explained_variance(v, r, m) for v, r, m in ranks]).mean()
    assert abs(mean_of_ranks - combined) > 1e-3  # averaging the ranks' own figures would not do
