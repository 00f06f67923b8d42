"""The statistics of the report card against hand-worked numbers, slow references and their own laws."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rlhf_ext.pair_statistics import (
    average_ranks,
    brier_score,
    correctness,
    expected_calibration_error,
    pearson,
    preferred_side_confidence,
    reliability_table,
    spearman,
    wilson_interval,
)
from rlhf_ext.report_card import make_report_card

finite = st.floats(-50, 50, width=32)
margin_lists = st.lists(finite, min_size=1, max_size=60)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def slow_ranks(values: list[float]) -> list[float]:
    """Rank = values below, plus half of the other equal ones, plus 1."""
    ranks = []
    for value in values:
        below = sum(1 for other in values if other < value)
        equal = sum(1 for other in values if other == value)
        ranks.append(below + (equal - 1) / 2 + 1)
    return ranks


def slow_pearson(x: list[float], y: list[float]) -> float:
    n, mean_x, mean_y = len(x), sum(x) / len(x), sum(y) / len(y)
    cov = sum((x[i] - mean_x) * (y[i] - mean_y) for i in range(n))
    var_x = sum((x[i] - mean_x) ** 2 for i in range(n))
    var_y = sum((y[i] - mean_y) ** 2 for i in range(n))
    return cov / math.sqrt(var_x * var_y)


def test_wilson_interval_of_8_in_10_by_hand() -> None:
    # z = 1.959964, z² = 3.841459, p = 0.8, n = 10.
    # centre = 0.8 + 3.841459 / 20 = 0.99207295; divisor = 1 + 0.3841459 = 1.3841459.
    # half = z * sqrt(0.016 + 3.841459 / 400) = z * sqrt(0.02560365) = 1.959964 * 0.16001140 = 0.31361657.
    # low = 0.67845638 / 1.3841459 = 0.49016248, high = 1.30568952 / 1.3841459 = 0.94331783
    low, high = wilson_interval(8, 10)
    assert low == pytest.approx(0.49016248, abs=1e-7)
    assert high == pytest.approx(0.94331783, abs=1e-7)


def test_wilson_interval_ends_solve_the_score_equation() -> None:
    # The ends are the proportions q whose test statistic (p - q) / sqrt(q(1 - q) / n) is exactly ±z.
    for right, n in ((1, 7), (30.5, 41), (500, 1000)):
        for q in wilson_interval(right, n, confidence=0.9):
            statistic = abs(right / n - q) / math.sqrt(q * (1 - q) / n)
            assert statistic == pytest.approx(1.6448536269514722, rel=1e-9)


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, 2 * n), st.just(n))), st.floats(0.5, 0.99))
def test_wilson_interval_holds_the_proportion_and_is_symmetric(halves: tuple[int, int], confidence: float) -> None:
    right, n = halves[0] / 2, halves[1]
    low, high = wilson_interval(right, n, confidence)
    assert 0 <= low <= right / n <= high <= 1 and low < high
    mirrored = wilson_interval(n - right, n, confidence)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((0, 0), "trials"), ((5, 4), "successes"), ((-1, 4), "successes"), ((1, 4, 95.0), "confidence")],
)
def test_wilson_interval_refuses_impossible_arguments(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wilson_interval(*arguments)


def test_confidence_brier_and_calibration_by_hand() -> None:
    # Confidences: 0.9 right, 0.9 wrong, 0.6 right, tie (0.5). Squares of (confidence - correct):
    # 0.01, 0.81, 0.16, 0.25: mean 1.23 / 4 = 0.3075.
    margins = [logit(0.9), -logit(0.9), logit(0.6), 0.0]
    assert preferred_side_confidence(margins) == pytest.approx([0.9, 0.9, 0.6, 0.5])
    assert correctness(margins).tolist() == [1.0, 0.0, 1.0, 0.5]
    assert brier_score(margins) == pytest.approx(0.3075)
    # Two bins, [0.5, 0.75] and (0.75, 1]. First: 0.6 and 0.5, mean confidence 0.55, accuracy (1 + 0.5) / 2 = 0.75.
    # Second: confidence 0.9, accuracy 0.5. Error: (2 * 0.2 + 2 * 0.4) / 4 = 0.3.
    first, second = reliability_table(margins, bins=2)
    assert (first.lower, first.upper, first.count) == (0.5, 0.75, 2)
    assert (first.confidence, first.accuracy) == (pytest.approx(0.55), pytest.approx(0.75))
    assert (second.lower, second.upper, second.count) == (0.75, 1.0, 2)
    assert (second.confidence, second.accuracy) == (pytest.approx(0.9), pytest.approx(0.5))
    assert expected_calibration_error((first, second)) == pytest.approx(0.3)


def test_a_model_that_is_right_as_often_as_it_says_has_no_calibration_error() -> None:
    # Confidence 0.75 on four pairs, three of them right.
    margins = [logit(0.75)] * 3 + [-logit(0.75)]
    assert expected_calibration_error(reliability_table(margins)) == pytest.approx(0.0, abs=1e-12)


def test_huge_margins_are_certain_and_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        assert brier_score([1e4, -1e4]) == pytest.approx(0.5)
        table = reliability_table([1e4, -1e4])
    assert table[-1].count == 2 and table[-1].accuracy == 0.5


@given(margin_lists)
def test_brier_score_is_the_squared_error_of_sigmoid_margin(margins: list[float]) -> None:
    expected = sum((1 - 1 / (1 + math.exp(-m))) ** 2 for m in margins) / len(margins)
    assert brier_score(margins) == pytest.approx(expected, rel=1e-9)


@given(margin_lists, st.integers(1, 12))
def test_reliability_table_counts_every_pair_once_in_its_bin(margins: list[float], bins: int) -> None:
    table = reliability_table(margins, bins)
    assert len(table) == bins and sum(row.count for row in table) == len(margins)
    weighted = sum(row.count * row.accuracy for row in table if row.accuracy is not None)
    assert weighted == pytest.approx(float(correctness(margins).sum()))
    for row in table:
        assert (row.confidence is None) == (row.count == 0)
        assert row.confidence is None or row.lower - 1e-12 <= row.confidence <= row.upper + 1e-12


@given(margin_lists)
def test_swapping_chosen_and_rejected_mirrors_the_accuracy_and_keeps_the_confidence(margins: list[float]) -> None:
    swapped = [-m for m in margins]
    assert (correctness(swapped) == 1 - correctness(margins)).all()
    for row, mirrored in zip(reliability_table(margins), reliability_table(swapped), strict=True):
        assert (row.count, row.confidence) == (mirrored.count, mirrored.confidence)
        assert row.accuracy is None or row.accuracy == pytest.approx(1 - mirrored.accuracy)


def test_reliability_table_refuses_no_bins() -> None:
    with pytest.raises(ValueError, match="bins"):
        reliability_table([1.0], bins=0)


def test_spearman_with_ties_by_hand() -> None:
    # x = 1, 2, 2, 3 has ranks 1, 2.5, 2.5, 4; y = 10, 30, 20, 20 has ranks 1, 4, 2.5, 2.5. Both have mean 2.5.
    # Deviations: x -1.5, 0, 0, 1.5; y -1.5, 1.5, 0, 0. Covariance 2.25, variances 4.5 and 4.5: 2.25 / 4.5 = 0.5.
    assert average_ranks([10, 30, 20, 20]).tolist() == [1.0, 4.0, 2.5, 2.5]
    assert spearman([1, 2, 2, 3], [10, 30, 20, 20]) == pytest.approx(0.5)


def test_pearson_by_hand() -> None:
    # x = 1, 2, 3 (deviations -1, 0, 1), y = 1, 3, 2 (-1, 1, 0): covariance 1, variances 2 and 2: 0.5.
    assert pearson([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)


@pytest.mark.parametrize("correlation", [pearson, spearman])
def test_correlation_is_not_defined_for_a_constant_or_a_single_point(correlation) -> None:
    assert correlation([0.1, 0.1, 0.1], [1, 2, 3]) is None
    assert correlation([1, 2, 3], [7, 7, 7]) is None
    assert correlation([1], [2]) is None


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=30))
def test_correlations_equal_plain_loops(points: list[tuple[int, int]]) -> None:
    x, y = [float(a) for a, _ in points], [float(b) for _, b in points]
    assert average_ranks(x).tolist() == slow_ranks(x)
    if len(set(x)) > 1 and len(set(y)) > 1:
        assert pearson(x, y) == pytest.approx(slow_pearson(x, y), abs=1e-9)
        assert spearman(x, y) == pytest.approx(slow_pearson(slow_ranks(x), slow_ranks(y)), abs=1e-9)


def test_card_by_hand() -> None:
    # Margins 2 - 0 = 2, 1 - 1 = 0 (tie), 0 - 3 = -3: accuracy (1 + 0.5 + 0) / 3 = 0.5, mean -1/3,
    # std: deviations 7/3, 1/3, -8/3: (49 + 1 + 64) / 9 / 2 = 6.3333, sqrt 2.516611.
    # All scores 2, 1, 0, 0, 1, 3: mean 7/6; squares 15 - 6 * 49/36 = 6.8333, / 5 = 1.366667, sqrt 1.169045.
    # Lengths are the scores + 5: correlation 1.
    card = make_report_card([2, 1, 0], [0, 1, 3], [7, 6, 5], [5, 6, 8])
    assert (card.num_pairs, card.num_ties, card.accuracy) == (3, 1, pytest.approx(0.5))
    assert (card.margin_mean, card.margin_std) == (pytest.approx(-1 / 3), pytest.approx(2.516611, abs=1e-6))
    assert (card.score_mean, card.score_std) == (pytest.approx(7 / 6), pytest.approx(1.169045, abs=1e-6))
    assert card.num_references == 6
    assert (card.length_pearson, card.length_spearman) == (pytest.approx(1.0), pytest.approx(1.0))
    assert card.normalization == (card.score_mean, card.score_std)
    assert card.notes == ()


def test_reference_scores_of_their_own_give_the_normalization() -> None:
    # 10 and 14: mean 12, sample standard deviation sqrt((4 + 4) / 1) = 2.828427.
    card = make_report_card([2], [0], [1], [1], reference_scores=[10, 14], reference="samples")
    assert card.normalization == (pytest.approx(12.0), pytest.approx(2.828427, abs=1e-6))
    assert (card.num_references, card.reference) == (2, "samples")


@pytest.mark.parametrize(
    ("references", "note"), [([0.1] * 3, "standard deviation 0"), ([1.0], "fewer than two"), ([1.0, math.nan], "NaN")]
)
def test_scores_without_a_usable_spread_give_no_normalization_and_a_note(references: list[float], note: str) -> None:
    card = make_report_card([2, 1], [0, 3], [1, 2], [3, 4], reference_scores=references)
    assert card.normalization is None
    assert any(note in text for text in card.notes)
    assert json.loads(json.dumps(card.to_dict(), allow_nan=False))["normalization"] is None


def test_pairs_with_nan_or_infinite_scores_are_left_out_and_named() -> None:
    card = make_report_card([2.0, math.nan, 5.0, 1.0], [0.0, 1.0, math.inf, 2.0], [1] * 4, [2] * 4)
    assert (card.num_pairs, card.accuracy) == (2, 0.5)
    assert any("2 pairs" in note for note in card.notes)
    assert card.normalization is None


def test_card_without_a_usable_pair_says_so_instead_of_failing() -> None:
    card = make_report_card([math.nan], [1.0], [1], [1])
    assert (card.num_pairs, card.accuracy, card.accuracy_low, card.brier, card.calibration_error) == (0, *[None] * 4)
    assert "not defined" in card.to_markdown()


def test_card_refuses_vectors_of_different_length() -> None:
    with pytest.raises(ValueError, match="one length"):
        make_report_card([1.0, 2.0], [1.0], [1, 2], [1, 2])


@given(st.integers(1, 30).flatmap(lambda n: arrays(np.float64, (4, n), elements=st.integers(-9, 9).map(float))))
def test_card_agrees_with_plain_loops(columns: np.ndarray) -> None:
    chosen, rejected = columns[0].tolist(), columns[1].tolist()
    n = len(chosen)
    card = make_report_card(*columns)
    right = sum(1.0 if c > r else 0.5 if c == r else 0.0 for c, r in zip(chosen, rejected, strict=True))
    assert card.accuracy == pytest.approx(right / n)
    assert card.accuracy_low <= card.accuracy <= card.accuracy_high
    scores = chosen + rejected
    mean = sum(scores) / (2 * n)
    assert card.score_mean == pytest.approx(mean, abs=1e-12)
    assert card.score_std == pytest.approx(math.sqrt(sum((s - mean) ** 2 for s in scores) / (2 * n - 1)), abs=1e-9)


def test_saved_file_holds_the_card(tmp_path) -> None:
    card = make_report_card([2, 1, 0], [0, 1, 3], [7, 6, 5], [5, 6, 8])
    path = card.save(tmp_path / "model")
    stored = json.loads(path.read_text())
    assert path.name == "report_card.json"
    assert stored["accuracy"] == card.accuracy and len(stored["reliability"]) == 10
    assert stored["normalization"] == {"score_mean": card.score_mean, "score_std": card.score_std}
    section = card.to_markdown()
    assert section.startswith("## Report card\n") and "0.500 (" in section and "1.167" in section
