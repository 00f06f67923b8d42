"""M1: the policy drifts away from the reference."""

import numpy as np
from provoked import LATE, TIME, N, rng, set_kl, without_target
from runs import check_of, healthy, modes, noise, opening, watch

from rlhf_ext.diagnostics import Severity


def test_kl_that_runs_away_from_its_target():
    columns = healthy()
    set_kl(columns, columns["kl_ref_seq"] + 20 * LATE)
    columns["beta"] = np.full(N, 0.05)
    _, events = watch(columns)
    finding = opening(events, "M1").finding
    assert finding.severity == Severity.WARN and finding.title == "KL far above its target"
    assert 115 < finding.step < 160
    # The spread of 0.7 pays for 0.7^2 / (2 * 0.05^2) = 98 nats.
    assert check_of(finding, "beta-too-low") == "confirmed"
    assert check_of(finding, "updates-too-large") == "refuted"
    assert finding.causes[0].check == "confirmed"
    assert finding.evidence[0].before == 6.0 and finding.evidence[0].unit == "nats/sequence"


def test_drift_is_critical_only_where_held_out_quality_falls():
    columns = healthy()
    set_kl(columns, columns["kl_ref_seq"] + 40 * LATE)
    columns["quality"] -= 1.0 * LATE
    _, events = watch(columns)
    assert max(e.finding.severity for e in events if e.finding.mode == "M1") == Severity.CRITICAL
    del columns["quality"]
    _, events = watch(columns)
    assert max(e.finding.severity for e in events if e.finding.mode == "M1") == Severity.WARN


def test_drift_without_gain_where_there_is_no_target():
    columns, changes = without_target(healthy())
    set_kl(columns, 6 * (TIME / 100) ** 2)
    columns["kl_update"] = np.full(N, 0.03)
    _, events = watch(columns, **changes)
    finding = opening(events, "M1").finding
    assert finding.title == "drift without gain"
    assert check_of(finding, "updates-too-large") == "confirmed"
    assert {evidence.metric for evidence in finding.evidence} >= {"kl_ref_seq", "score_mean"}


def test_drift_with_gain_is_learning():
    columns, changes = without_target(healthy(quality=False))
    set_kl(columns, 6 * (TIME / 100) ** 2)
    columns["score_mean"] = 0.012 * TIME + noise(rng(), N, 0.12)
    assert "M1" not in modes(watch(columns, **changes)[1], Severity.INFO)


def test_a_kl_on_its_way_to_a_target_needs_no_gain():
    columns = healthy(quality=False)
    set_kl(columns, 10 * (TIME / N) ** 2)
    columns["kl_target"][:] = 12.0
    columns["score_mean"] = noise(rng(), N, 0.12)
    assert "M1" not in modes(watch(columns, kl_target=12.0)[1])
    columns["kl_target"][:] = 4.0
    assert "M1" in modes(watch(columns, kl_target=4.0)[1])


def test_a_slow_run_that_gains_less_than_the_noise_within_a_window_gains_all_the_same():
    columns, changes = without_target(healthy(quality=False))
    set_kl(columns, 6 * (TIME / 100) ** 2)
    columns["score_mean"] = 0.0025 * TIME + noise(rng(), N, 0.12)
    assert "M1" not in modes(watch(columns, **changes)[1])
    columns["score_mean"] = noise(rng(), N, 0.12)
    assert "M1" in modes(watch(columns, **changes)[1])


def test_a_score_that_falls_while_the_policy_is_further_away_is_drift_without_a_trend_of_the_kl():
    columns, changes = without_target(healthy(quality=False))
    set_kl(columns, np.where(TIME < 130, 4.0, 6.0) + 0.0 * TIME)
    columns["kl_ref_seq"] = columns["kl_ref_seq"] * (1 + 0.3 * noise(rng(), N, 1.0))
    columns["score_mean"] = 1.4 - 0.8 * LATE + noise(rng(), N, 0.12)
    assert opening(watch(columns, **changes)[1], "M1").finding.title == "drift with loss"
    # A fall without a way away from the reference: harder prompts.
    set_kl(columns, np.full(N, 4.0))
    assert "M1" not in modes(watch(columns, **changes)[1])
    # Within what the controller may overshoot.
    columns = healthy(quality=False)
    columns["score_mean"] = columns["score_mean"] - 0.8 * LATE
    assert "M1" not in modes(watch(columns)[1])


def test_drift_in_length_alone_is_told_apart():
    columns, changes = without_target(healthy())
    longer = 1 + 1.5 * LATE
    columns["len_mean"] = columns["len_mean"] * longer
    columns["score_mean"] = 1.4 + noise(rng(), N, 0.12)
    set_kl(columns, 6 * longer)
    _, events = watch(columns, **changes)
    finding = opening(events, "M1").finding
    assert check_of(finding, "length-growth") == "confirmed"


def test_kl_jump():
    columns, changes = without_target(healthy())
    set_kl(columns, np.where(TIME < 150, 3.0, 14.0) + 0.0 * TIME)
    columns["score_mean"] = 1.0 - 0.5 * (TIME >= 150) + noise(rng(), N, 0.12)
    _, events = watch(columns, **changes)
    finding = opening(events, "M1").finding
    assert finding.title == "KL jump" and 150 < finding.step < 165
