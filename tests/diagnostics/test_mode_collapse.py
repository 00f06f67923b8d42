"""M2: the answers become alike, or the entropy runs away."""

import numpy as np
from provoked import LATE, N, rng
from runs import check_of, healthy, modes, noise, opening, watch

from rlhf_ext.diagnostics import Severity


def test_duplicates_are_enough_and_become_critical():
    columns = healthy()
    columns["dup_frac"] += 0.7 * LATE
    _, events = watch(columns)
    kinds = [(e.kind, e.finding.severity) for e in events if e.finding.mode == "M2"]
    assert kinds == [("opened", Severity.WARN), ("escalated", Severity.CRITICAL)]


def test_a_task_with_few_answers_has_duplicates_and_is_healthy():
    columns = healthy()
    columns["dup_frac"] += 0.25
    assert "M2" not in modes(watch(columns)[1])


def test_entropy_that_falls_without_gain():
    columns = healthy(quality=False)
    columns["entropy_tok"] *= np.exp(-3 * LATE)
    columns["score_mean"] = 1.4 + noise(rng(), N, 0.12)
    _, events = watch(columns, temperature=0.7)
    finding = opening(events, "M2").finding
    assert finding.severity == Severity.WARN and finding.title == "entropy falls without gain"
    assert check_of(finding, "no-entropy-bonus") == check_of(finding, "cold-sampling") == "confirmed"


def test_entropy_that_falls_with_gain_is_learning():
    columns = healthy(quality=False)
    columns["entropy_tok"] *= np.exp(-3 * LATE)
    columns["score_mean"] = 0.3 + 2 * LATE + noise(rng(), N, 0.12)
    assert "M2" not in modes(watch(columns)[1], Severity.INFO)


def test_entropy_explosion():
    columns = healthy()
    columns["entropy_tok"] = 2.0 * (1 + LATE)
    columns["score_mean"] = 1.5 - 1.5 * LATE + noise(rng(), N, 0.12)
    _, events = watch(columns, entropy_coef=0.1)
    finding = opening(events, "M2").finding
    assert finding.title == "entropy explosion"
    assert check_of(finding, "entropy-bonus-too-large") == "confirmed"
    columns["score_mean"] = columns["score_mean"][::-1].copy()
    assert "M2" not in modes(watch(columns)[1])


def test_variety_is_compared_at_like_length():
    columns = healthy()
    columns["distinct2"] *= 1 - 0.6 * LATE
    assert opening(watch(columns)[1], "M2").finding.title == "less and less variety"
    columns["len_mean"] *= 1 + 1.0 * LATE
    assert "M2" not in modes(watch(columns)[1])


def test_answers_to_the_probe_become_alike():
    columns = healthy()
    columns["probe_dup_frac"] = columns["dup_frac"] * 0
    _, events = watch(columns)
    assert "M2" not in modes(events)
    # 16 answers: of a few pairs nothing is said.
    columns["probe_dup_frac"] += 0.25 * (LATE > 0.5)
    assert "M2" not in modes(watch(columns)[1])
    columns["probe_dup_frac"] *= 2.5
    finding = opening(watch(columns)[1], "M2").finding
    assert finding.severity == Severity.WARN and "62% of the answers to the probe" in finding.summary


def test_answers_to_the_probe_lose_variety():
    columns = healthy()
    columns["probe_distinct2"] = columns["distinct2"] * (1 - 0.6 * LATE)
    finding = opening(watch(columns)[1], "M2").finding
    assert finding.title == "less and less variety" and "of the answers to the probe fell from" in finding.summary
