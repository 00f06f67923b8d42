"""M1 to M5: runs that fail by definition, and what is said of their causes."""

import numpy as np
import pytest
import runs
from runs import check_of, healthy, modes, noise, opening, watch

from rlhf_ext.diagnostics import Diagnostics, Record, Sample, Severity
from rlhf_ext.diagnostics.history import History
from rlhf_ext.diagnostics.signals import CLEAR_FALL, decline

N = 240
TIME = np.arange(N)
LATE = np.clip((TIME - 110) / 60, 0, 1)
"""0 up to rollout 110, then a rise to 1 within 60."""


def rng():
    return np.random.default_rng(7)


def without_target(columns):
    """A run of fixed beta and no target."""
    del columns["kl_target"]
    return columns, {"kl_target": None, "kl_unit": None, "kl_controller": "fixed"}


def set_kl(columns, kl):
    columns["kl_ref_seq"] = kl + noise(rng(), N, 1.0) * columns["kl_se"]
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / columns["len_mean"]
    columns["kl_ref_k3"] = columns["kl_ref_seq"] * 1.1 + 0.05


# M1


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


# M2


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


# M3


def hacked():
    columns = healthy()
    columns["score_mean"] = columns["score_mean"] + 1.0 * LATE
    columns["quality"] = columns["quality"] - 0.8 * LATE
    return columns


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


# M4


def test_value_loss_that_oscillates():
    columns = healthy()
    columns["value_loss"] = columns["value_loss"] * np.exp(LATE * rng().normal(0, 1.2, N)) / 2
    columns["explained_var"] = columns["explained_var"] - 0.4
    _, events = watch(columns, critic_learning_rate=1e-3)
    assert opening(events, "M4").finding.severity == Severity.WARN
    columns["explained_var"] = columns["explained_var"] - 1.2 * LATE
    columns["lr_critic"] = columns["lr_critic"] * 100
    _, events = watch(columns)
    assert {"M4", "X7"} <= modes(events)
    assert "M4" in modes(events, Severity.CRITICAL)
    assert check_of(opening(events, "M4").finding, "critic-learning-rate") == "confirmed"


def test_value_loss_that_explodes_relative_to_the_returns():
    columns = healthy()
    columns["value_loss"] = columns["value_loss"] * np.exp(4 * LATE)
    variance = columns.pop("return_var")
    assert opening(watch(columns)[1], "M4").finding.title == "value loss explodes"
    columns["return_var"] = variance * np.exp(4 * LATE)
    assert "M4" not in modes(watch(columns)[1])


def test_critic_is_given_time_after_a_change_of_beta():
    columns = healthy()
    # Without it the loss is known by its own start alone, which is learned anew.
    del columns["return_var"], columns["explained_var"]
    columns["beta"] = np.where(TIME < 150, 0.3, 0.6)
    columns["value_loss"] = np.where(TIME >= 150, 20.0, 1.0) * columns["value_loss"]
    columns["value_loss"][150:155] *= 8
    assert "M4" not in modes(watch(columns)[1])
    columns["beta"][:] = 0.3
    assert "M4" in modes(watch(columns)[1])


# M5


def still(**changes):
    """A policy that stays where it is, under a score that does not answer."""
    columns = healthy()
    set_kl(columns, np.full(N, 0.02))
    columns["kl_se"] = np.full(N, 0.01)
    columns["kl_ref_seq"] = 0.02 + noise(rng(), N, 0.01)
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / 40
    columns["kl_ref_k3"] = np.full(N, 0.03)
    columns["score_mean"] = noise(rng(), N, 0.12)
    columns["score_max"] = np.full(N, 2.5)
    columns["quality"] = np.where(TIME % 5 == 0, noise(rng(), N, 0.05), np.nan)
    return columns | {name: np.broadcast_to(np.asarray(value, dtype=float), N) for name, value in changes.items()}


CAUSES = {
    "beta-too-high": ({"beta": 30.0, "kl_update": 5e-4}, {}),
    "learning-rate-too-low": ({"lr": 1e-8, "kl_update": 1e-6}, {}),
    "no-gradient, and a critic that learns": ({"kl_update": 0.0, "kl_ref_seq": 0.0}, {}),
    "no-gradient": ({"grad_norm": 0.0, "kl_update": 0.0, "kl_ref_seq": 0.0}, {}),
    "constant-score": ({"score_std": 0.0, "kl_update": 0.0, "score_mean": 1.0}, {}),
    "reference-is-the-policy": ({"kl_ref_seq": 0.0, "kl_ref_tok": 0.0, "kl_update": 5e-4}, {}),
    "reward-clipped-away": (
        {"score_mean": 1.96, "score_std": 0.1, "beta": 0.01, "kl_update": 5e-4},
        {"score_clip": 2.0},
    ),
    "controller-at-upper-bound": ({"beta": np.minimum(0.2 + 0.05 * TIME, 3.0), "kl_update": 5e-4}, {}),
    "score-at-ceiling": (
        {"score_max": 1.0, "score_mean": 0.99, "score_std": 0.05, "beta": 0.01, "kl_update": 5e-4},
        {},
    ),
    "updates-cancel": ({"kl_update": 0.005}, {}),
}


@pytest.mark.parametrize("name", CAUSES)
def test_no_movement_and_its_cause(name):
    columns, changes = CAUSES[name]
    _, events = watch(still(**columns), **changes)
    kinds = [(e.kind, e.finding.severity) for e in events if e.finding.mode == "M5"]
    assert kinds[:2] == [("opened", Severity.INFO), ("escalated", Severity.WARN)]
    finding = [e for e in events if e.finding.mode == "M5"][-1].finding
    confirmed = [c.name for c in finding.causes if c.check == "confirmed"]
    # A controller at its upper bound holds a beta that is too high: both are true.
    assert confirmed == [name.split(",")[0]] + ["beta-too-high"] * (name == "controller-at-upper-bound")


def test_a_small_distance_that_pays_is_movement():
    columns = still(kl_update=5e-4)
    columns["score_mean"] = 0.01 * TIME + noise(rng(), N, 0.12)
    assert "M5" not in modes(watch(columns)[1], Severity.INFO)


# What is missing


@pytest.mark.parametrize(
    ("mode", "gone", "lacks"),
    [
        ("M1", ("kl_ref_seq", "kl_ref_tok"), "kl_ref_seq|kl_ref_tok"),
        ("M2", ("dup_frac", "distinct2", "entropy_tok"), "entropy_tok"),
        ("M3", ("score_mean",), "score_mean"),
        ("M4", ("value_loss", "value_clipfrac"), "value_loss"),
        ("M5", ("score_mean",), "score_mean"),
        ("X7", ("explained_var",), "explained_var"),
    ],
)
def test_a_mode_without_its_data_abstains_and_says_what_it_lacks(mode, gone, lacks):
    columns = hacked()
    set_kl(columns, columns["kl_ref_seq"] + 40 * LATE)
    columns["value_loss"] *= np.exp(4 * LATE)
    columns["dup_frac"] += LATE
    columns["explained_var"] -= 2 * LATE
    for name in gone:
        del columns[name]
    diagnostics, events = watch(columns)
    assert lacks in diagnostics.abstentions[mode]
    assert mode not in modes(events, Severity.INFO)
    assert modes(events)


def test_samples_are_kept_with_the_finding():
    diagnostics = Diagnostics(runs.settings())
    samples = tuple(Sample(f"p{i}", f"c{i}", float(i)) for i in range(9))
    (event,) = diagnostics.observe(Record(1, {"policy_loss": float("nan")}, samples=samples))
    assert [sample.score for sample in event.finding.samples] == [8, 7, 6, 0, 1]
