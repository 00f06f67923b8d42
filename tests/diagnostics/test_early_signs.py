"""What is seen before a window is full: KL without a return, a quality that does not follow, a scale that jumps."""

import math

import numpy as np
import pytest
from runs import check_of, healthy, modes, noise, opening, records, settings, watch

from rlhf_ext.diagnostics import Diagnostics, Severity
from rlhf_ext.diagnostics.statistics import bend_noise, largest_fall

N = 240
TIME = np.arange(N)
LATE = np.clip((TIME - 110) / 60, 0, 1)


def rng():
    return np.random.default_rng(3)


def free(gain):
    """No target: the KL rises by a nat in four rollouts, to 20; the score by `gain` of `sigma * sqrt(2 KL)`, sigma 1."""
    columns = healthy(quality=False)
    del columns["kl_target"]
    kl = np.minimum(TIME / 4, 20.0)
    columns["kl_ref_seq"] = kl + noise(rng(), N, 1.0) * columns["kl_se"]
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / columns["len_mean"]
    columns["score_std"] = np.ones(N)
    columns["score_mean"] = 0.5 + gain * np.sqrt(2 * kl) + noise(rng(), N, 0.03)
    return columns, {"kl_target": None, "kl_unit": None, "kl_controller": "fixed"}


def test_kl_that_a_score_never_pays_for_is_drift_long_before_a_window_is_full():
    columns, changes = free(0.0)
    diagnostics, events = watch(columns, **changes)
    finding = opening(events, "M1").finding
    # The level of the last nine rollouts passes 2 nats at rollout 13; three tests in a row.
    assert finding.title == "drift without return" and finding.severity == Severity.WARN
    assert 12 < finding.step < 22 < diagnostics.history.windows.window
    assert check_of(finding, "reward-blind") == "confirmed"
    assert finding.evidence[1].before == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("gain", [0.12, 0.5])
def test_a_score_that_pays_a_tenth_of_what_is_possible_is_no_drift(gain):
    columns, changes = free(gain)
    assert "M1" not in modes(watch(columns, **changes)[1])


def test_kl_within_its_target_needs_no_return():
    columns, _ = free(0.0)
    assert "drift without return" not in {e.finding.title for e in watch(columns, kl_target=20.0)[1]}


def test_a_log_that_begins_far_from_the_reference_has_no_start_to_compare_with():
    columns, changes = free(0.0)
    late = {name: column[100:] for name, column in columns.items()}
    assert "drift without return" not in {e.finding.title for e in watch(late, **changes)[1]}


def following(share):
    """The score gains two spreads late; the quality `share` of two standard deviations of a probe with it."""
    columns = healthy()
    columns["score_mean"] = 1.5 * (1 - np.exp(-TIME / 40)) + 2 * LATE + noise(rng(), N, 0.12)
    quality = 0.8 * (1 - np.exp(-TIME / 40)) + rng().normal(0, 0.2, N) + share * 0.4 * LATE
    columns["quality"] = np.where(TIME % 5 == 0, quality, np.nan)
    return columns


def test_a_quality_that_stays_while_the_score_rises_is_a_warning_and_no_more():
    assert modes([e for e in watch(following(0.0))[1] if e.finding.mode == "M3"]) == {"M3"}
    assert "M3" not in modes(watch(following(0.0))[1], Severity.CRITICAL)
    assert "M3" not in modes(watch(following(1.5))[1])


def test_a_reward_on_another_scale_gained_nothing():
    columns = healthy()
    late = TIME >= 130
    for name in ("score_mean", "score_std", "score_max", "adv_std"):
        columns[name] = columns[name] * np.where(late, 10.0, 1.0)
    _, events = watch(columns)
    assert "M3" not in modes(events)
    # Seen by the third rollout after the jump.
    assert opening(events, "X12").finding.step == 133


def test_the_probes_are_part_of_the_state():
    columns = following(0.0)
    one, rollouts = Diagnostics(settings()), list(records(columns))
    for record in rollouts[:120]:
        one.observe(record)
    other = Diagnostics(settings())
    other.load_state_dict(one.state_dict())
    told = [[e.step for r in rollouts[120:] for e in d.observe(r) if e.finding.mode == "M3"] for d in (one, other)]
    assert told[0] == told[1] != []


def test_noise_by_second_differences():
    # Bends of 1, -1, 1 around a line: differences 1 - 2 * -1 + 1 = 4 and -4.
    assert bend_noise(np.array([1.0, -1.0, 1.0, -1.0])) == pytest.approx(math.sqrt(16 / 6))
    assert bend_noise(np.arange(9.0)) == 0.0
    assert bend_noise(np.array([1.0, 2.0])) == 0.0
    assert bend_noise(np.arange(4000) + rng().normal(0, 2, 4000)) == pytest.approx(2, rel=0.05)


def slow_largest_fall(x, most):
    best = 0.0
    for k in range(1, most + 1):
        for j in range(1, most + 1):
            for start in range(len(x) - k - j + 1):
                before, after = x[start : start + j], x[len(x) - k :]
                best = max(best, (sum(before) / j - sum(after) / k) / math.sqrt(1 / j + 1 / k))
    return best


def test_largest_fall_against_all_blocks_and_by_hand():
    for n in (2, 5, 17):
        x = np.random.default_rng(n).normal(size=n)
        assert largest_fall(x, 4)[0] == pytest.approx(slow_largest_fall(x.tolist(), 4))
    # Three values of 6, then two of 0: 6 / sqrt(1 / 3 + 1 / 2), from the middle of the three.
    fall, place = largest_fall(np.array([0.0, 6.0, 6.0, 6.0, 0.0, 0.0]))
    assert fall == pytest.approx(6 / math.sqrt(5 / 6)) and place == 2
    assert largest_fall(np.arange(6.0)) == (0.0, 0)


def test_how_often_a_quality_that_rises_and_settles_passes():
    """The calibration of docs/diagnostics.md, with the score's part left out."""
    draws, passed = np.random.default_rng(0), 0
    for _ in range(100):
        x, in_a_row, seen = 6 * (1 - np.exp(-np.arange(20) / 4)) + draws.normal(size=20), 0, False
        for n in range(5, 21):
            known = bend_noise(x[:n]) * math.sqrt(1 + 4 / (n - 2))
            in_a_row = in_a_row + 1 if largest_fall(x[:n] / known)[0] > 3.5 else 0
            seen |= in_a_row >= 2
        passed += seen
    assert passed <= 2
