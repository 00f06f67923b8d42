import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from references import check_masked_whiten, flat, ragged_mask, ragged_values

from rlhf_ext.functional import (
    masked_mean,
    masked_moments,
    masked_sum,
    masked_var,
    masked_whiten,
    moments_to_mean_var,
)

NAN = math.nan
MASK = torch.tensor([[True, True, False], [False, True, True]])
VALUES = torch.tensor([[1.0, 3.0, NAN], [math.inf, 5.0, 7.0]])

numbers = st.floats(-1e3, 1e3, allow_subnormal=False)


def test_sums_and_moments_by_hand():
    # 1 + 3 + 5 + 7 = 16; mean 4; squared deviations 9 + 1 + 1 + 9 = 20, / 4 = 5; squares 1 + 9 + 25 + 49 = 84
    assert masked_sum(VALUES, MASK).item() == 16
    assert masked_mean(VALUES, MASK).item() == 4
    assert masked_var(VALUES, MASK).item() == 5
    assert masked_moments(VALUES, MASK).tolist() == [4, 16, 84]
    assert [x.item() for x in moments_to_mean_var(torch.tensor([4.0, 16.0, 84.0]))] == [4, 5]


def test_reductions_over_one_dimension_by_hand():
    # rows: (1, 3) and (5, 7); columns: (1), (3, 5), (7)
    assert masked_sum(VALUES, MASK, dim=1).tolist() == [4, 12]
    assert masked_mean(VALUES, MASK, dim=1).tolist() == [2, 6]
    assert masked_var(VALUES, MASK, dim=-1).tolist() == [1, 1]
    assert masked_mean(VALUES, MASK, dim=0).tolist() == [1, 4, 7]
    assert masked_var(VALUES, MASK, dim=0).tolist() == [0, 1, 0]


def test_whitening_by_hand():
    # mean 4, variance 5: (1 - 4) / sqrt 5 = -1.34164, (3 - 4) / sqrt 5 = -0.44721
    expected = torch.tensor([[-1.34164, -0.44721, 0.0], [0.0, 0.44721, 1.34164]])
    torch.testing.assert_close(masked_whiten(VALUES, MASK), expected, rtol=1e-5, atol=0)
    kept = torch.where(MASK, expected + 4, 0)
    torch.testing.assert_close(masked_whiten(VALUES, MASK, shift_mean=False), kept, rtol=1e-5, atol=0)


def test_whitening_agrees_with_plain_loops():
    check_masked_whiten(masked_whiten)


def test_the_mean_of_a_flag_is_a_fraction():
    flag = torch.tensor([[True, False, True], [True, False, False]])
    assert masked_mean(flag, MASK).item() == 0.25  # of the four real tokens only the first has the flag


@pytest.mark.parametrize("dim", [None, 0, 1])
def test_an_empty_mask_gives_zero_and_not_nan(dim):
    nothing = torch.zeros_like(MASK)
    for function in (masked_sum, masked_mean, masked_var):
        assert (function(VALUES, nothing, dim) == 0).all()
    assert [x.item() for x in moments_to_mean_var(masked_moments(VALUES, nothing))] == [0, 0]
    assert (masked_whiten(VALUES, nothing) == 0).all()


def test_padding_with_nan_leaves_the_gradient_finite_and_zero_there():
    for function in (masked_sum, masked_mean, masked_var):
        values = VALUES.clone().requires_grad_()
        function(values, MASK).backward()
        assert values.grad.isfinite().all()
        assert (values.grad[~MASK] == 0).all()
        assert values.grad[MASK].abs().sum() > 0


def test_equal_values_whiten_to_zero():
    assert masked_whiten(torch.full((2, 3), 0.1), MASK).abs().max() < 1e-6


def test_whitening_rank_by_rank_with_global_moments_equals_whitening_the_whole():
    mask, values = ragged_mask(), ragged_values(ragged_mask(), 20, scale=3.0)
    moments = sum(masked_moments(v, m) for v, m in zip(values.split(2), mask.split(2), strict=True))
    mean, var = moments_to_mean_var(moments)
    pairs = zip(values.split(2), mask.split(2), strict=True)
    parts = torch.cat([masked_whiten(v, m, mean=mean, var=var) for v, m in pairs])
    torch.testing.assert_close(parts, masked_whiten(values, mask), rtol=1e-9, atol=1e-12)


def test_moments_keep_a_small_variance_beside_a_large_mean():
    # +-1 around 30000: squares are 9e8, where float32 steps by 64; variance 1
    values = torch.tensor([[29999.0, 30001.0] * 500])
    _, var = moments_to_mean_var(masked_moments(values, torch.ones_like(values, dtype=torch.bool)))
    assert var.item() == pytest.approx(1.0, rel=1e-6)


@pytest.mark.parametrize("given", [{"mean": 0.0}, {"var": 1.0}])
def test_half_of_the_statistics_is_refused(given):
    missing = "var" if "mean" in given else "mean"
    with pytest.raises(ValueError, match=f"`{missing}` is None"):
        masked_whiten(VALUES, MASK, **given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_and_returned_wide(dtype):
    values = torch.ones(1, 4099, dtype=dtype)  # neither half type has the number 4099
    total = masked_sum(values, torch.ones_like(values, dtype=torch.bool))
    assert total.item() == 4099
    assert total.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [masked_sum, masked_mean, masked_var, masked_whiten])
def test_the_type_that_came_in_goes_out(function, dtype):
    assert function(VALUES.to(dtype), MASK).dtype == dtype


def test_rounding_never_makes_a_variance_negative():
    # one value of 1 whose square was rounded down by the last bit of float64
    _, var = moments_to_mean_var(torch.tensor([1.0, 1.0, 1.0 - 2.0**-53], dtype=torch.float64))
    assert var.item() == 0.0


@settings(deadline=None, max_examples=60)
@given(st.lists(numbers, min_size=1, max_size=12), st.integers(0, 3), st.integers(0, 3))
def test_statistics_match_the_standard_library_whatever_the_padding(row, left, right):
    padded = torch.tensor([[NAN] * left + row + [math.inf] * right], dtype=torch.float64)
    mask = torch.tensor([[False] * left + [True] * len(row) + [False] * right])
    tolerance = {"rel": 1e-9, "abs": 1e-9}
    assert masked_sum(padded, mask).item() == pytest.approx(math.fsum(row), **tolerance)
    assert masked_mean(padded, mask).item() == pytest.approx(statistics.fmean(row), **tolerance)
    assert masked_var(padded, mask).item() == pytest.approx(statistics.pvariance(row), **tolerance)
    _, var = moments_to_mean_var(masked_moments(padded, mask))
    assert var.item() == pytest.approx(statistics.pvariance(row), rel=1e-6, abs=1e-8)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-100, 100))
def test_whitened_values_have_mean_zero_and_variance_one_and_keep_their_order(seed, scale, shift):
    mask = ragged_mask()
    values = ragged_values(mask, seed, scale) + shift
    whitened = flat(masked_whiten(values, mask), mask)
    raw = flat(values, mask)
    assert statistics.fmean(whitened) == pytest.approx(0, abs=1e-6)
    assert statistics.pvariance(whitened) == pytest.approx(1, abs=1e-2)  # eps beside a variance near 1e-4
    assert sorted(range(len(raw)), key=raw.__getitem__) == sorted(range(len(raw)), key=whitened.__getitem__)
