"""X1 to X16: each with a run that shows it, one near it that must stay silent, and one that lacks the data."""

import numpy as np
import pytest
from runs import check_of, healthy, modes, noise, opening, records, settings, watch

from rlhf_ext.diagnostics import Diagnostics, Record, Severity

N = 240
TIME = np.arange(N)
LATE = np.clip((TIME - 110) / 60, 0, 1)
AT = np.where(TIME >= 120, 1.0, 0.0)
"""A step at rollout 120."""


def rng():
    return np.random.default_rng(7)


def scaled(name, factor):
    return lambda columns: columns.update({name: columns[name] * factor})


def set_to(name, value):
    return lambda columns: columns.update({name: np.broadcast_to(np.asarray(value, dtype=float), N).copy()})


def both(*changes):
    return lambda columns: [change(columns) for change in changes]


SPIKES = np.where(np.isin(TIME, [150, 158, 166, 174]), 100.0, 1.0)
FLAT_SCORE = set_to("score_mean", noise(np.random.default_rng(3), N, 0.12))
FLAT_QUALITY = set_to("quality", np.where(TIME % 5 == 0, noise(np.random.default_rng(3), N, 0.05), np.nan))
LONGER = both(scaled("len_mean", 1 + LATE), set_to("score_len_corr", 0.1 + 0.5 * LATE))

SHOWN = {
    # mode: what happens, the worst severity of the mode
    "X1": (set_to("policy_loss", np.where(TIME == 120, np.nan, 0.0)), Severity.CRITICAL),
    "X2": (set_to("kl_ref_seq", -3.0 * AT + 1), Severity.WARN),
    "X3": (set_to("ratio_first_dev", 0.3), Severity.WARN),
    "X4": (set_to("rollout_gap", 0.2 * AT), Severity.WARN),
    "X5": (set_to("pg_clipfrac", 0.02 + 0.3 * AT), Severity.WARN),
    "X6": (set_to("kl_update", 0.004 + 0.1 * AT), Severity.WARN),
    "X7": (set_to("explained_var", 0.6 - 0.9 * AT), Severity.CRITICAL),
    "X8": (both(LONGER, FLAT_QUALITY), Severity.WARN),
    "X9": (both(scaled("len_mean", 1 - 0.6 * LATE), FLAT_SCORE), Severity.WARN),
    "X10": (set_to("trunc_rate", 0.05 + 0.5 * AT), Severity.WARN),
    "X11": (set_to("rep4", np.where(TIME % 5 == 0, 0.03 + 0.4 * AT, np.nan)), Severity.WARN),
    "X12": (scaled("score_std", 1 + 9 * AT), Severity.WARN),
    "X13": (
        both(scaled("score_std", 1 - 0.9 * LATE), FLAT_SCORE, set_to("kl_ref_seq", 2 + (TIME / 40) ** 2)),
        Severity.WARN,
    ),
    "X14": (set_to("adv_std", 1 - AT), Severity.WARN),
    "X15": (scaled("grad_norm", SPIKES), Severity.WARN),
    "X16": (set_to("beta", np.where(TIME // 10 % 2, 0.1, 0.5)), Severity.WARN),
}


@pytest.mark.parametrize("mode", SHOWN)
def test_a_run_that_shows_the_mode(mode):
    change, severity = SHOWN[mode]
    columns = healthy()
    change(columns)
    _, events = watch(columns)
    mine = [event for event in events if event.finding.mode == mode]
    assert mine and max(event.finding.severity for event in mine) == severity
    for event in mine:
        assert event.finding.evidence and event.finding.causes and event.finding.summary
        order = [("confirmed", "open", "refuted").index(c.check) for c in event.finding.causes]
        assert order == sorted(order)


NEAR = {
    "X1": set_to("explained_var", np.where(TIME == 120, np.nan, 0.5)),
    "X2": both(set_to("kl_ref_seq", np.where(TIME < 100, -0.02, 1.0)), set_to("kl_ref_k3", 0.9)),
    "X3": set_to("ratio_first_dev", 0.005),
    "X4": set_to("rollout_gap", 0.02),
    "X5": set_to("pg_clipfrac", 0.15),
    "X6": set_to("kl_update", np.where(TIME % 20 == 0, 0.2, 0.01)),
    "X7": set_to("explained_var", np.where(TIME % 9 == 0, 0.05, 0.02)),
    "X8": both(LONGER, set_to("quality", np.where(TIME % 5 == 0, 0.01 * TIME, np.nan))),
    "X9": both(scaled("len_mean", 1 - 0.6 * LATE), set_to("score_mean", 0.02 * TIME)),
    "X10": both(set_to("trunc_rate", 1.0), set_to("eos_rate", 0.0)),
    "X11": set_to("rep4", np.where(TIME % 5 == 0, 0.02 + 0.05 * AT, np.nan)),
    "X12": scaled("score_std", np.exp(1.8 * TIME / N)),
    "X13": scaled("score_std", 1 - 0.9 * LATE),
    "X14": set_to("adv_std", np.where(TIME % 4 == 0, 0.0, 1.0)),
    "X15": scaled("grad_norm", np.where(np.isin(TIME, [150, 174]), 100.0, 1.0)),
    "X16": set_to("beta", 0.3 * np.exp(0.2 * np.sin(TIME / 5))),
}


@pytest.mark.parametrize("mode", NEAR)
def test_a_run_near_the_mode_is_silent(mode):
    columns = healthy()
    NEAR[mode](columns)
    _, events = watch(columns)
    assert mode not in modes(events)


NEEDS = {
    "X2": ("kl_ref_seq", "kl_ref_tok"),
    "X3": ("ratio_first_dev",),
    "X4": ("rollout_gap",),
    "X5": ("pg_clipfrac",),
    "X6": ("kl_update",),
    "X7": ("explained_var",),
    "X8": ("quality",),
    "X9": ("len_mean",),
    "X10": ("trunc_rate", "eos_rate"),
    "X11": ("rep4",),
    "X12": ("score_std",),
    "X13": ("score_std", "score_max_frac"),
    "X14": ("score_std", "adv_std", "grad_norm"),
    "X15": ("grad_norm", "grad_norm_critic"),
    "X16": ("beta",),
}


@pytest.mark.parametrize("mode", NEEDS)
def test_without_its_data_the_mode_abstains(mode):
    columns = healthy()
    SHOWN[mode][0](columns)
    for name in NEEDS[mode]:
        del columns[name]
    diagnostics, events = watch(columns)
    assert any(name in part for part in diagnostics.abstentions[mode] for name in NEEDS[mode])
    assert mode not in modes(events, Severity.INFO)


def test_nothing_is_missing_where_everything_is_logged():
    columns = healthy() | {"eval_score": np.ones(N)}
    columns |= {f"probe_{name}": columns[name] for name in ("dup_frac", "distinct2")}
    assert watch(columns)[0].abstentions == {}


# What the table cannot say


def test_a_limit_that_is_not_known_is_not_called_a_number():
    columns = healthy()
    columns["trunc_rate"] = np.full(N, 0.2)
    finding = opening(watch(columns, max_completion_length=None)[1], "X10").finding
    assert finding.summary.startswith("20% of the completions do not end within their limit.")


def test_a_metric_that_stops_being_logged_is_named():
    kept = [r if r.step < 100 else Record(r.step, {k: v for k, v in r.values.items() if k != "value_loss"})
            for r in records(healthy())]  # fmt: skip
    diagnostics = Diagnostics(settings())
    events = [event for record in kept for event in diagnostics.observe(record)]
    finding = opening(events, "X1").finding
    assert finding.severity == Severity.WARN and "value_loss" in finding.summary and finding.step == 102


def test_overflow_while_fp16_looks_for_its_scale_is_no_failure():
    columns = healthy()
    columns["grad_norm"][:4] = np.inf
    assert "X1" not in modes(watch(columns, dtype="float16")[1], Severity.INFO)
    assert "X1" in modes(watch(columns)[1], Severity.CRITICAL)
    columns["grad_norm"][100] = np.inf
    finding = opening(watch(columns, dtype="float16")[1], "X1").finding
    assert finding.step == 101 and check_of(finding, "fp16-overflow") == "confirmed"


def test_bf16_is_given_its_rounding():
    columns = healthy()
    columns["ratio_first_dev"][:] = 0.1
    assert "X3" in modes(watch(columns)[1])
    assert "X3" not in modes(watch(columns, dtype="bfloat16")[1])


def test_a_negative_kl_says_what_it_pays():
    columns = healthy()
    SHOWN["X2"][0](columns)
    columns["kl_ref_k3"][:] = 1.0
    assert "adds" in opening(watch(columns)[1], "X2").finding.summary


def test_estimators_that_disagree():
    columns = healthy()
    columns["kl_ref_seq"] = np.full(N, -0.05)
    columns["kl_ref_k3"] = np.full(N, 4.0)
    assert opening(watch(columns)[1], "X2").finding.title == "KL estimators disagree"
    # Both are means over the same samples of what has the same mean.
    columns["kl_ref_seq"] = np.full(N, 2.0)
    columns["kl_ref_k3"] = np.where(TIME % 3 == 0, 200.0, 6.0)
    assert "X2" not in modes(watch(columns)[1])
    columns["kl_ref_k3"] = np.full(N, 12.0)
    assert opening(watch(columns)[1], "X2").finding.title == "KL estimators disagree"


def test_a_critic_that_says_one_number_explains_nothing():
    columns = healthy()
    columns["explained_var"] = np.where(TIME < 100, 0.3, np.where(TIME % 2, 0.015, -0.005))
    assert "X7" in modes(watch(columns)[1])
    columns["explained_var"] = np.where(TIME < 100, 0.3, np.where(TIME % 5, -0.01, 0.06))
    assert "X7" not in modes(watch(columns)[1])


def test_single_scores_that_are_not_finite_are_the_reward_function():
    columns = healthy()
    columns["nonfinite"] = np.where(TIME == 100, 3.0, 0.0)
    finding = opening(watch(columns)[1], "X1").finding
    assert finding.causes[0].name == "reward-not-finite" and finding.causes[0].check == "confirmed"
    assert (
        "3 scores or optimizer steps" in finding.summary
        and "left out" in finding.summary
        and "lost" not in finding.summary
    )


def test_a_scale_that_changed_is_not_blamed_on_outliers_that_are_not_there():
    columns = healthy()
    columns["score_std"] = columns["score_std"] * np.where(TIME < 120, 1.0, 10.0)
    columns["score_max"] = columns["score_mean"] + 3 * columns["score_std"]
    finding = opening(watch(columns)[1], "X12").finding
    assert (finding.causes[0].name, check_of(finding, "outliers")) == ("reward-changed", "refuted")
    columns["score_max"] = columns["score_mean"] + 8 * columns["score_std"]
    assert check_of(opening(watch(columns)[1], "X12").finding, "outliers") == "confirmed"


def test_dropout_is_named_before_the_sampler_where_two_forward_calls_disagree():
    columns = healthy()
    columns["ratio_first_dev"][:] = 1.5
    assert opening(watch(columns)[1], "X3").finding.causes[0].name == "dropout"


def test_truncation_is_a_warning_where_endings_are_wanted():
    columns = healthy()
    NEAR["X10"](columns)
    _, events = watch(columns, missing_eos_penalty=1.0)
    assert "X10" in modes(events)
    assert check_of(opening(events, "X10").finding, "eos-never-sampled") == "confirmed"


@pytest.mark.parametrize("rollouts", [25, N])
def test_texts_of_fixed_length_stay_no_warning_once_more_of_them_end(rollouts):
    columns = healthy()
    set_to("trunc_rate", np.where(TIME >= 8, 0.8, 0.97))(columns)
    set_to("eos_rate", np.where(TIME >= 8, 0.2, 0.03))(columns)
    assert "X10" not in modes(watch({name: values[:rollouts] for name, values in columns.items()})[1])


@pytest.mark.parametrize(("eos", "warns"), [(0.5, True), (0.0, False)])
def test_a_log_that_counts_endings_alone_is_read_as_one_that_counts_cuts(eos, warns):
    columns = healthy()
    set_to("eos_rate", eos)(columns)
    del columns["trunc_rate"]
    assert ("X10" in modes(watch(columns)[1])) == warns


def test_endings_that_get_lost():
    columns = healthy()
    columns["eos_rate"] = columns["eos_rate"] - 0.4 * AT
    del columns["trunc_rate"]
    assert "X10" in modes(watch(columns)[1])


def test_beta_at_a_bound_off_target():
    columns = healthy()
    columns["kl_ref_seq"] = 1.5 + noise(rng(), N, 0.1)
    columns["beta"] = np.maximum(0.3 - 0.005 * TIME, 0.003)
    assert opening(watch(columns)[1], "X16").finding.title == "beta is stuck"
    # A controller that waits for a KL on its way is not stuck, nor is a fixed one.
    columns["kl_ref_seq"] = 0.5 + 0.012 * TIME + noise(rng(), N, 0.1)
    assert "X16" not in modes(watch(columns)[1])
    columns["kl_ref_seq"] = 1.5 + noise(rng(), N, 0.1)
    columns["beta"] = np.full(N, 0.3)
    assert "X16" not in modes(watch(columns, kl_controller="fixed")[1])


def test_a_target_in_the_settings_is_enough():
    columns = healthy()
    columns["kl_ref_tok"] = 0.02 + noise(rng(), N, 0.001)
    columns["beta"] = np.maximum(0.3 - 0.005 * TIME, 0.003)
    del columns["kl_target"]
    finding = opening(watch(columns, kl_target=0.1, kl_unit="token")[1], "X16").finding
    assert "0.1" in finding.summary and "nats/token" in finding.summary


def test_a_step_of_the_score_is_worth_knowing():
    columns = healthy()
    columns["score_mean"] = columns["score_mean"] - 3 * AT
    finding = opening(watch(columns)[1], "X12").finding
    assert finding.severity == Severity.INFO and finding.title == "the score made a step"


def test_hard_limits_are_watched_in_short_runs_and_trends_are_not():
    columns = healthy(n=40)
    columns["kl_update"][:] = 0.2
    columns["kl_ref_seq"] += 50
    diagnostics, events = watch(columns, planned_rollouts=40)
    assert modes(events) == {"X6"}
    assert diagnostics.abstentions["M1"] == ("a run of at least 60 rollouts",)
