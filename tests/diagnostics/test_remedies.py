"""What `act` decides: bounded, apart in time, taken back where it did not help."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import pytest

from rlhf_ext.diagnostics import Cause, Diagnostics, Finding, Record, RunSettings, Severity
from rlhf_ext.diagnostics.remedies import MOST_ACTIONS, UPDATE_KL, Remediation

# W = 30: 15 % of 200 rollouts.
SETTINGS = RunSettings(planned_rollouts=200, rollout_size=64)
HALF, WINDOW = 15, 30
CALM = {"kl_ref_seq": 8.0, "score_std": 1.0, "beta": 0.1, "value_loss": 1.0, "kl_update": 0.01, "pg_clipfrac": 0.05}


class Run:
    """An engine whose open findings are set by hand."""

    def __init__(self, **metrics):
        self.engine = Diagnostics(SETTINGS)
        # Only the history is wanted.
        self.found = {}
        self.remediation = Remediation()
        self.go(1, **metrics)

    def go(self, rollouts, **metrics):
        """That many rollouts, the actions of each."""
        actions = []
        for _ in range(rollouts):
            row = self.engine.history.rows + 1
            self.engine.history.add(Record(row, CALM | metrics))
            for detector in self.engine.detectors:
                detector.finding = self.found.get(detector.mode)
            actions += self.remediation.decide(self.engine)
        return actions

    def find(self, mode, severity=Severity.WARN, causes=()):
        confirmed = tuple(Cause(name, "why", "confirmed", "how", "cure") for name in causes)
        self.found[mode] = Finding(
            mode, "title", severity, self.engine.history.rows, "what happened", causes=confirmed
        )


def moves(actions):
    return [(action.lever, pytest.approx(action.value), action.is_reversal) for action in actions]


def test_nothing_is_done_about_a_calm_run_or_what_is_only_worth_knowing():
    run = Run()
    assert run.go(40) == []
    run.find("M4", Severity.INFO)
    assert run.go(40) == []


def test_drift_raises_beta_to_where_the_present_kl_is_the_optimum():
    # Gaussian optimum at beta 0.1: 1 / (2 * 0.01) = 50 nats; for 8 nats beta must be sqrt(50 / 8) = 2.5 times as large.
    run = Run()
    run.find("M1")
    (action,) = run.go(1)
    assert moves([action]) == [("beta", 2.5, False)]
    assert (action.mode, action.metric, action.before, action.reason) == ("M1", "kl_ref_seq", 8.0, "what happened")


@pytest.mark.parametrize(("beta", "factor"), [(0.001, 4.0), (0.24, 1.5), (3.0, 1.5), (0.0, 4.0)])
def test_the_step_in_beta_is_between_one_and_a_half_and_four(beta, factor):
    run = Run(beta=beta)
    run.find("M1")
    assert moves(run.go(1, beta=beta)) == [("beta", factor, False)]


def test_the_step_in_beta_aims_at_the_target_where_there_is_one():
    run = Run()
    run.engine.history.settings = replace(SETTINGS, kl_target=18.0, kl_unit="sequence")
    run.find("M1")
    # sqrt(50 / 18)
    assert moves(run.go(1)) == [("beta", math.sqrt(50 / 18), False)]


TOO_FAST = ("critic-learning-rate",)


def test_actions_are_half_a_window_apart_and_three_at_most():
    run = Run()
    run.find("M4", causes=TOO_FAST)
    rows, loss = [], 1.0
    for _ in range(12):
        loss *= 0.8  # every action helps
        rows += [action.row for action in run.go(WINDOW, value_loss=loss)]
    assert rows[0] == 2
    assert all(later - earlier >= HALF for earlier, later in pairwise(rows))
    assert len(rows) == MOST_ACTIONS


def test_the_critics_rate_is_lowered_only_where_it_is_known_to_be_too_high():
    run = Run()
    run.find("M4", causes=("reward-scale",))
    assert run.go(WINDOW) == []
    run.find("M4", causes=TOO_FAST)
    loss, factors = 1.0, []
    for _ in range(10):
        loss *= 0.8
        factors += [action.value for action in run.go(HALF, value_loss=loss)]
    assert factors == [0.3, 0.3, 0.3]
    assert run.remediation.factors["critic_lr"] == pytest.approx(0.027)


def test_what_did_not_help_is_taken_back_and_not_tried_again():
    run = Run()
    run.find("X5")
    (action,) = run.go(1)
    assert moves([action]) == [("policy_lr", 0.7, False)]
    later = run.go(HALF - 1)
    assert later == []
    (second, *rest) = run.go(4 * WINDOW)
    # A window after the last move the share of clipped ratios is what it was before the first.
    assert moves([second]) == [("policy_lr", 0.7, False)]
    assert moves(rest[-1:]) == [("policy_lr", 1 / 0.7**3, True)]
    assert run.remediation.factors["policy_lr"] == pytest.approx(1.0)
    assert "it did not help" in rest[-1].reason
    assert run.remediation.disabled.keys() == {"policy_lr"}


def test_of_several_moves_those_that_helped_stay():
    run = Run()
    run.find("M4", causes=TOO_FAST)
    assert moves(run.go(1)) == [("critic_lr", 0.3, False)]
    later = run.go(4 * WINDOW, value_loss=0.5)
    # The first halved the loss, the two after it did nothing.
    assert moves(later[-1:]) == [("critic_lr", 1 / 0.3**2, True)]
    assert run.remediation.factors["critic_lr"] == pytest.approx(0.3)


def test_what_helped_stays():
    run = Run()
    run.find("X5")
    run.go(1, pg_clipfrac=0.3)
    run.found.clear()
    assert run.go(3 * WINDOW, pg_clipfrac=0.3) == []  # the finding closed
    run = Run(pg_clipfrac=0.3)
    run.find("X5")
    assert len(run.go(1, pg_clipfrac=0.3)) == 1
    reversals = [action for action in run.go(3 * WINDOW, pg_clipfrac=0.1) if action.is_reversal]
    assert [action.row for action in reversals if action.row <= WINDOW + 2] == []


def test_large_updates_are_ended_early_and_the_limit_is_lifted_where_it_did_not_help():
    run = Run()
    run.find("X6")
    assert run.remediation.update_kl == math.inf
    assert moves(run.go(1)) == [("update_kl", UPDATE_KL, False)]
    assert run.remediation.update_kl == UPDATE_KL
    assert moves(run.go(WINDOW)) == [("update_kl", math.inf, True)]
    assert run.remediation.update_kl == math.inf


def test_the_penalty_is_lowered_only_where_it_is_known_to_hold_the_policy():
    run = Run()
    run.find("M5")
    assert run.go(1) == []
    run.find("M5", causes=("beta-too-high",))
    assert moves(run.go(1)) == [("beta", 0.67, False)]


@pytest.mark.parametrize("mode", ["M1", "M2", "M3"])
def test_a_run_whose_output_is_being_destroyed_is_stopped_once(mode):
    run = Run()
    run.find(mode, Severity.CRITICAL)
    actions = run.go(40)
    assert [action.lever for action in actions].count("stop") == 1
    assert actions[0].lever == "stop"
    assert actions[0].since == run.found[mode].step


def test_what_comes_first_is_treated_first_and_one_thing_at_a_time():
    run = Run()
    run.find("M1")
    run.find("X6")
    assert [action.lever for action in run.go(1)] == ["update_kl"]
    # Nothing more can be done about the updates, so the drift is next.
    assert [action.lever for action in run.go(1)] == ["beta"]
    assert run.go(1) == []


def test_a_lever_that_cannot_be_moved_is_left_alone():
    run = Run()
    run.find("M4", causes=TOO_FAST)
    run.remediation.disable("critic_lr", "no schedule")
    assert run.go(WINDOW) == []
    run.find("X6")
    assert moves(run.go(1)) == [("update_kl", UPDATE_KL, False)]
    run.remediation.disable("update_kl", "DeepSpeed")
    # A resumed run sets its limit by this.
    assert run.remediation.update_kl == math.inf


def test_what_should_rise_and_stays_as_it_was_did_not_help():
    run = Run(explained_var=0.0)
    run.find("X7", causes=TOO_FAST)
    reversals = [action for action in run.go(4 * WINDOW, explained_var=0.0) if action.is_reversal]
    assert [action.lever for action in reversals] == ["critic_lr"]


def test_a_saved_state_decides_as_one_that_was_never_saved():
    def start():
        run = Run()
        run.find("X5")
        run.find("M1")
        run.go(20)
        return run

    whole, resumed = start(), start()
    fresh = Remediation()
    fresh.load_state_dict(json.loads(json.dumps(resumed.remediation.state_dict())))
    resumed.remediation = fresh
    expected = whole.go(80)
    assert resumed.go(80) == expected
    assert any(action.is_reversal for action in expected)


@pytest.mark.parametrize(
    ("critic", "policy", "factor"),
    [
        (0.05, 1e-3, 1 / 50),
        (1e-5, 1e-3, 100.0),
        (0.03, 1e-3, None),  # 30 times, the limit
        (1e-3 / 30, 1e-3, None),
        (1e-5, 0.01, None),  # the slip is the policy's
        (0.4, 0.01, 1 / 40),
        (None, 1e-3, None),
        (0.05, None, None),
    ],
)
def test_a_critics_rate_that_the_settings_check_warns_of_is_set_right_before_the_first_step(critic, policy, factor):
    remediation = Remediation()
    settings = replace(SETTINGS, critic_learning_rate=critic, learning_rate=policy)
    actions = remediation.at_start(settings)
    assert moves(actions) == ([] if factor is None else [("critic_lr", pytest.approx(factor), False)])
    assert remediation.factors == ({} if factor is None else {"critic_lr": pytest.approx(factor)})
