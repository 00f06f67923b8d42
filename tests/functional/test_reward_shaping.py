import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import RUNS, check_shape_rewards, ragged_mask, ragged_values

from rlhf_ext.functional import (
    apply_missing_eos_penalty,
    clip_scores,
    gae,
    last_token_index,
    shape_rewards,
)

NAN = math.nan


def test_the_last_token_is_found_with_padding_on_either_side_and_in_empty_rows():
    # RUNS are (start, end): the last token is end - 1, and there is none in the empty run
    assert last_token_index(ragged_mask()).tolist() == [5, 5, 2, 3, 5, -1]
    assert last_token_index(ragged_mask()).dtype == torch.long


def test_the_last_token_of_a_row_with_a_hole_is_the_last_one():
    assert last_token_index(torch.tensor([[True, False, True, False]])).tolist() == [2]


def test_a_batch_without_columns_has_no_last_token():
    assert last_token_index(torch.zeros(2, 0, dtype=torch.bool)).tolist() == [-1, -1]


def test_terminal_placement_by_hand():
    # row 0: KL 0.5 - 1 + 2 = 1.5, beta 0.2: 3 - 0.3 = 2.7 at index 2; row 1: KL 4, 1 - 0.8 = 0.2 at index 1
    kl = torch.tensor([[0.5, -1.0, 2.0], [3.0, 1.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = shape_rewards(torch.tensor([3.0, 1.0]), kl, mask, 0.2)
    torch.testing.assert_close(rewards, torch.tensor([[0.0, 0.0, 2.7], [0.0, 0.2, 0.0]]), rtol=1e-6, atol=1e-7)


def test_token_placement_by_hand():
    # row 0: -0.1, 0.2, 3 - 0.4; row 1: -0.6, 1 - 0.2
    kl = torch.tensor([[0.5, -1.0, 2.0], [3.0, 1.0, NAN]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    rewards = shape_rewards(torch.tensor([3.0, 1.0]), kl, mask, 0.2, placement="token")
    torch.testing.assert_close(rewards, torch.tensor([[-0.1, 0.2, 2.6], [-0.6, 0.8, 0.0]]), rtol=1e-6, atol=1e-7)


def test_shaping_agrees_with_plain_loops():
    check_shape_rewards(shape_rewards)


@pytest.mark.parametrize("placement", ["terminal", "token"])
def test_without_a_penalty_the_score_stands_alone_at_the_last_token(placement):
    mask = ragged_mask()
    scores = torch.arange(1.0, 7.0)
    rewards = shape_rewards(scores, ragged_values(mask, 0), mask, 0.0, placement)
    expected = torch.zeros(6, 6)
    for row, (start, end) in enumerate(RUNS):
        if end > start:
            expected[row, end - 1] = row + 1.0
    torch.testing.assert_close(rewards.float(), expected, rtol=0, atol=0)


@pytest.mark.parametrize("placement", ["terminal", "token"])
def test_half_precision_kl_is_weighted_in_float32(placement):
    kl = torch.ones(1, 1, dtype=torch.bfloat16)  # bfloat16 has 0.30078 where beta is 0.3
    rewards = shape_rewards(torch.zeros(1, dtype=torch.bfloat16), kl, kl.bool(), 0.3, placement)
    assert rewards.dtype == torch.float32
    assert rewards.item() == pytest.approx(-0.3, rel=1e-6)


@pytest.mark.parametrize("placement", ["terminal", "token"])
def test_a_row_without_tokens_gets_no_reward_even_if_its_score_is_nan(placement):
    mask = torch.tensor([[False, False], [True, True]])
    kl = torch.tensor([[NAN, NAN], [1.0, 1.0]])
    rewards = shape_rewards(torch.tensor([NAN, 2.0]), kl, mask, 0.5, placement)
    assert rewards[0].tolist() == [0.0, 0.0]
    assert rewards[1].sum().item() == 1.0  # 2 - 0.5 * 2


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0, 5), st.floats(-10, 10))
def test_both_placements_give_the_same_total_and_the_same_undiscounted_first_return(seed, beta, score):
    mask = ragged_mask(RUNS[:5])
    kl = ragged_values(mask, seed)
    scores = torch.full((5,), score, dtype=torch.float64)
    terminal, token = (shape_rewards(scores, kl, mask, beta, p) for p in ("terminal", "token"))
    torch.testing.assert_close(terminal.sum(1), token.sum(1), rtol=1e-9, atol=1e-9)
    total = scores - beta * torch.where(mask, kl, 0).sum(1)
    first = mask.int().argmax(1)[:, None]
    for rewards in (terminal, token):
        _, returns = gae(rewards, torch.zeros_like(rewards), mask, gamma=1.0, lam=1.0)
        torch.testing.assert_close(returns.gather(1, first)[:, 0], total, rtol=1e-9, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(0, 3), st.integers(0, 3), st.sampled_from(["terminal", "token"]))
def test_wider_padding_only_moves_the_rewards(seed, left, right, placement):
    mask = ragged_mask()
    kl = ragged_values(mask, seed)
    scores = torch.arange(6.0, dtype=torch.float64)
    wide_mask = torch.nn.functional.pad(mask, (left, right))
    wide_kl = torch.nn.functional.pad(kl, (left, right), value=NAN)
    wide = shape_rewards(scores, wide_kl, wide_mask, 0.3, placement)
    narrow = shape_rewards(scores, kl, mask, 0.3, placement)
    torch.testing.assert_close(wide, torch.nn.functional.pad(narrow, (left, right)), rtol=1e-12, atol=1e-12)


def test_scores_are_clipped_on_both_sides():
    assert clip_scores(torch.tensor([-3.0, -1.0, 0.5, 9.0]), 2.0).tolist() == [-2.0, -1.0, 0.5, 2.0]


def test_only_completions_without_eos_pay_the_penalty():
    scores = apply_missing_eos_penalty(torch.tensor([1.0, -1.0]), torch.tensor([True, False]), 0.5)
    assert scores.tolist() == [1.0, -1.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_scores(torch.zeros(2), 0.0), "`clip` is 0.0"),
        (lambda: clip_scores(torch.zeros(2), math.inf), "`clip` is inf"),
        (lambda: apply_missing_eos_penalty(torch.zeros(1), torch.ones(1).bool(), -1.0), "`penalty` is -1.0"),
        (lambda: shape_rewards(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2).bool(), -0.1), "`beta` is -0.1"),
        (lambda: shape_rewards(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2).bool(), NAN), "`beta` is nan"),
        (
            lambda: shape_rewards(torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2).bool(), 0.1, "eos"),
            "`placement` is 'eos'.*terminal.*token",
        ),
    ],
)
def test_bad_numbers_are_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()
