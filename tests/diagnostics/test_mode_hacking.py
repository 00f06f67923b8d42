"""M3: the score rises while the quality falls, and what is said where no quality is measured."""

import numpy as np
import runs
from provoked import LATE, TIME, N, hacked, rng
from runs import check_of, healthy, modes, noise, opening, watch

from rlhf_ext.diagnostics import Record, Severity
from rlhf_ext.diagnostics.history import History
from rlhf_ext.diagnostics.signals import CLEAR_FALL, decline


def test_hacking_against_a_held_out_quality():
    _, events = watch(hacked())
    finding = opening(events, "M3").finding
    assert "M3" in modes(events, Severity.CRITICAL)
    assert finding.title == "reward hacking" and finding.step < 180
    assert "best checkpoint" in finding.summary
    assert finding.evidence[0].metric == "quality" and finding.evidence[0].before > finding.evidence[0].after


def test_without_a_held_out_quality_the_same_run_is_never_above_suspected():
    columns = hacked()
    del columns["quality"]
    columns["rm_disagreement"] *= 1 + LATE
    columns["rm_outlier_frac"] += 0.5 * LATE
    diagnostics, events = watch(columns)
    finding = opening(events, "M3").finding
    assert finding.severity == Severity.WARN and "suspected" in finding.title
    assert "M3" not in modes(events, Severity.CRITICAL)
    assert diagnostics.abstentions["M3.quality"] == ("quality|eval_score",)


def test_one_sign_is_not_enough():
    columns = hacked()
    del columns["quality"]
    columns["rm_disagreement"] *= 1 + LATE
    assert "M3" not in modes(watch(columns)[1], Severity.INFO)


def exploited_length():
    columns = healthy(quality=False)
    columns["len_mean"] = columns["len_mean"] * (1 + 0.8 * LATE)
    columns["score_mean"] = columns["score_mean"] + 1.0 * LATE
    columns["score_len_corr"] = 0.1 + 0.6 * LATE + noise(rng(), N, 0.05)
    columns["ref_nll"] = columns["ref_nll"] * (1 - 0.5 * LATE)
    return columns


def test_hacking_from_text_and_scalars():
    finding = opening(watch(exploited_length())[1], "M3").finding
    assert finding.severity == Severity.WARN and "suspected" in finding.title
    assert {evidence.metric for evidence in finding.evidence} >= {"len_mean", "ref_nll"}
    assert check_of(finding, "length-bias") == "confirmed"


def test_a_quality_that_rises_silences_suspicion():
    columns = exploited_length()
    columns["quality"] = np.where(TIME % 5 == 0, 0.01 * TIME + np.random.default_rng(1).normal(0, 0.05, N), np.nan)
    assert "M3" not in modes(watch(columns)[1], Severity.INFO)


def test_a_fall_on_new_prompts_is_overfitting_and_no_proof():
    columns = hacked()
    columns["eval_score"] = columns.pop("quality")
    runs_with_probe = {**columns, "eval_score": columns["eval_score"][::5].repeat(5)}
    _, events = watch(runs_with_probe)
    assert "M3" in modes(events) and "M3" not in modes(events, Severity.CRITICAL)


def test_a_score_that_never_rose_is_not_hacked():
    columns = hacked()
    columns["score_mean"] = rng().normal(0, 0.12, N)
    assert "M3" not in modes(watch(columns)[1])


def test_a_quality_that_falls_a_little_while_the_score_rises():
    columns = healthy()
    columns["score_mean"] = 0.01 * TIME + noise(rng(), N, 0.12)
    columns["quality"] = np.where(TIME % 5 == 0, np.minimum(TIME, 100) / 50 - 0.3 * LATE, np.nan)
    columns["quality"] = columns["quality"] + rng().normal(0, 0.2, N)
    assert "M3" in modes(watch(columns)[1])
    columns["score_mean"] = 0.01 * np.minimum(TIME, 90) + noise(rng(), N, 0.12)
    assert "M3" not in modes(watch(columns)[1])


def test_the_best_of_noise_is_no_peak():
    """Of series without a decline, few may pass the threshold; a naive 1.5 sd would let a third through."""
    draws = np.random.default_rng(0)
    passed = {1.5: 0, CLEAR_FALL: 0}
    for _ in range(100):
        history, in_a_row = History(runs.settings()), dict.fromkeys(passed, 0)
        alarmed = set()
        for row, value in enumerate(draws.normal(0, 1, 48)):
            history.add(Record(row, {"quality": float(value)}))
            fall = decline(history, "quality")
            for sds in passed:
                in_a_row[sds] = in_a_row[sds] + 1 if fall is not None and fall.in_noise > sds else 0
                alarmed |= {sds} if in_a_row[sds] >= 3 else set()
        for sds in alarmed:
            passed[sds] += 1
    assert passed[CLEAR_FALL] <= 4 and passed[1.5] >= 20
