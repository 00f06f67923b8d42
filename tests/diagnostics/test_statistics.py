"""Statistics by hand, against slow references, and the calibration that the thresholds rest on."""

import itertools
import json
import math
import statistics as standard

import numpy as np
import pytest

from rlhf_ext.diagnostics.history import Change
from rlhf_ext.diagnostics.signals import describe
from rlhf_ext.diagnostics.statistics import (
    PageHinkley,
    block_medians,
    mann_kendall_z,
    median,
    noise_sd,
    ratio_to,
    residuals,
    robust_sd,
    robust_z,
    running_median,
    theil_sen,
    trend_z,
)


@pytest.mark.parametrize("n", [1, 2, 5, 10, 15, 37])
def test_medians_equal_the_standard_librarys(n):
    x = np.random.default_rng(n).normal(size=n)
    assert median(x) == standard.median(x.tolist())
    half = 7
    mirrored = np.pad(x, min(half, n - 1), mode="reflect") if n > 1 else x
    width = 2 * min(half, n - 1) + 1
    slow = [standard.median(mirrored[i : i + width]) for i in range(n)]
    np.testing.assert_array_equal(running_median(x, 15), slow)
    np.testing.assert_array_equal(residuals(x), x - slow)


def test_block_medians_by_hand():
    # 1 2 3 | 4 5 9 and, of seven values in three blocks, pieces of 2, 2 and 3.
    np.testing.assert_array_equal(block_medians(np.array([1.0, 3, 2, 9, 4, 5]), 2), [2, 5])
    np.testing.assert_array_equal(block_medians(np.array([1.0, 3, 5, 7, 9, 0, 4]), 3), [2, 6, 4])
    np.testing.assert_array_equal(block_medians(np.array([3.0, 1]), 10), [3, 1])


def test_mann_kendall_by_hand():
    # Four rising values: S = 6, var = 4 * 3 * 13 / 18, z = 5 / sqrt(8.667).
    assert mann_kendall_z(np.array([1.0, 2, 3, 4])) == pytest.approx(5 / math.sqrt(156 / 18))
    # 1 1 2: S = 2, var = (3 * 2 * 11 - 2 * 1 * 9) / 18 = 48 / 18.
    assert mann_kendall_z(np.array([1.0, 1, 2])) == pytest.approx(1 / math.sqrt(48 / 18))
    assert mann_kendall_z(np.array([5.0, 5, 5, 5])) == 0
    assert mann_kendall_z(np.array([1.0, 2])) == 0


def test_mann_kendall_equals_a_slow_reference_and_its_permutation_variance():
    x = np.random.default_rng(0).integers(0, 4, 12).astype(float).tolist()

    def s(values):
        return sum((b > a) - (b < a) for a, b in itertools.combinations(values, 2))

    scores = [s(p) for p in itertools.permutations(x[:6])]
    expected = (s(x[:6]) - np.sign(s(x[:6]))) / math.sqrt(np.var(scores))
    assert mann_kendall_z(np.array(x[:6])) == pytest.approx(expected)
    assert mann_kendall_z(-np.array(x)) == -mann_kendall_z(np.array(x))


def test_theil_sen_is_the_median_slope_and_ignores_outliers():
    t = np.arange(30.0)
    x = 2 * t + 1
    x[[3, 17]] = 1e6
    assert theil_sen(x) == pytest.approx(2)
    # Slopes 1, 3/2, 2, 8/3, 7/2, 5.
    assert theil_sen(np.array([0.0, 1.0, 3.0, 8.0])) == pytest.approx(7 / 3)
    assert theil_sen(np.array([1.0])) == 0


def test_robust_scale():
    x = np.random.default_rng(0).normal(3, 2, 20_000)
    x[:100] = 1e9
    assert robust_sd(x) == pytest.approx(2, rel=0.05)
    assert robust_z(7, 3, 2) == 2
    assert robust_z(7, 3, 0, floor=4) == 1
    assert robust_z(7, 3, 0) == 0
    assert ratio_to(3, 2) == 1.5
    assert ratio_to(3, 0) is None and ratio_to(3, -1) is None


def test_noise_is_that_of_a_value_under_a_slow_trend():
    noise = np.random.default_rng(0).normal(0, 0.5, 400)
    assert noise_sd(noise + 0.02 * np.arange(400)) == pytest.approx(noise_sd(noise), rel=0.15)
    assert noise_sd(noise) == pytest.approx(0.5, rel=0.15)


def test_page_hinkley_equals_its_definition_and_continues_from_its_state():
    z = np.random.default_rng(0).normal(0.2, 1, 200)
    delta, threshold = 0.5, 4.0
    sums = np.concatenate([[0.0], np.cumsum(z - delta)])
    slow = [bool(sums[t] - sums[: t + 1].min() > threshold) for t in range(1, 201)]
    assert any(slow) and not all(slow)
    test = PageHinkley(delta, threshold)
    assert [test.update(value) for value in z] == slow
    first, second = PageHinkley(delta, threshold), PageHinkley(delta, threshold)
    for value in z[:90]:
        first.update(value)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert [second.update(value) for value in z[90:]] == slow[90:]


def alarms(series, statistic, in_a_row):
    """Whether a window of 60, tested every 5 rows, is above 2.58 so often in a row."""
    hits = 0
    for end in range(60, series.size + 1, 5):
        hits = hits + 1 if statistic(series[end - 60 : end]) > 2.58 else 0
        if hits >= in_a_row:
            return True
    return False


def autocorrelated(rng, n=400, rho=0.5):
    x = np.empty(n)
    x[0] = rng.normal()
    for t in range(1, n):
        x[t] = rho * x[t - 1] + math.sqrt(1 - rho**2) * rng.normal()
    return x


def test_false_alarms_and_power_of_the_trend_test():
    rng = np.random.default_rng(0)
    still = [autocorrelated(rng) for _ in range(60)]
    naive = np.mean([alarms(x, mann_kendall_z, 1) for x in still])
    blocked = np.mean([alarms(x, trend_z, 3) for x in still])
    # Published for this page's design: 0.91 / 2 (one side of two) and 0.007 / 2.
    assert naive > 0.5
    assert blocked <= 0.05
    ramp = 3 * np.arange(400) / 60
    assert np.mean([alarms(x + ramp, trend_z, 3) for x in still[:20]]) >= 0.95


def test_a_change_is_described_with_its_slope():
    x = np.arange(50.0) * 0.02 + 1
    x[::10] += 5
    assert "(Theil-Sen +0.02 a logged value, " in describe(Change(x), "nats/token")
