"""The critic: worse than a constant, the noise of a rollout's size, one that lags, and what is done about it."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import check_of, healthy, modes, opening, watch

from rlhf_ext.diagnostics import Diagnostics, Record, RunSettings, Severity
from rlhf_ext.diagnostics.critic_signals import CriticConfig, error_of_constant
from rlhf_ext.diagnostics.remedies import Remediation

sys.path.insert(0, str(Path(__file__).parents[2]))

N = 240
TIME = np.arange(N)
LATE = np.clip((TIME - 110) / 20, 0, 1)
SWING = np.random.default_rng(3).normal(0, 1.0, N)


def history_of(columns, **settings):
    engine = Diagnostics(RunSettings(planned_rollouts=200, **settings))
    for row in range(len(columns["value_loss"])):
        engine.history.add(Record(row + 1, {name: float(values[row]) for name, values in columns.items()}))
    return engine.history


def test_twice_the_value_loss_over_the_variance_is_the_error_of_a_constant():
    # A critic that says the mean of the returns: half the squared error is half their variance. Medians of 5 of 20 rows.
    columns = {"value_loss": np.r_[np.full(10, 0.5), 3.0, 4.0, 5.0, 1.0, 2.0], "return_var": np.full(15, 2.0)}
    history = history_of(columns)
    assert error_of_constant(history, 5) == 3.0
    assert error_of_constant(history, 5, before=5) == 0.5
    assert error_of_constant(history, 5, before=11) is None
    # Scores without spread: X14 says so, and no critic is to blame.
    assert error_of_constant(history_of(columns | {"score_std": np.zeros(15)}), 5) is None


@pytest.mark.parametrize(("size", "limit"), [(4, 2.15), (16, 1.4), (64, 1.2125), (400, 1.16), (None, 1.2125)])
def test_the_limit_allows_for_the_chance_of_a_rollouts_mean(size, limit):
    assert CriticConfig().error(RunSettings(rollout_size=size)) == pytest.approx(limit)


def test_the_mean_of_few_returns_is_off_by_what_the_limit_allows():
    # A critic that says the true mean for everything, its error measured within rollouts of 16: the limit is passed in
    # hardly any of the medians of eight, and by one that is a deviation off in all.
    rng, config = np.random.default_rng(0), CriticConfig()
    limit = config.error(RunSettings(rollout_size=16))
    returns = rng.normal(0, 1, (400, 8, 16))
    for shift, share in ((0.0, 0.01), (1.5, 1.0)):
        errors = np.median(((returns - shift) ** 2).mean(-1) / returns.var(-1), axis=1)
        assert ((errors > limit).mean() <= share) if shift == 0 else ((errors > limit).mean() == share)


def off_by(error, late=LATE):
    """A healthy run whose values move away from the returns until the squared error is that of a constant times `error`."""
    columns = healthy()
    columns["value_loss"] = columns["value_loss"] / columns["return_var"]
    columns["return_var"] = np.ones(N)
    columns["value_loss"] = columns["value_loss"] * (1 - late) + late * error * columns["return_var"] / 2
    return columns


def test_a_critic_worse_than_a_constant_is_warned_of_from_the_logs_alone():
    _, events = watch(off_by(2.0))
    finding = opening(events, "M4").finding
    assert finding.severity == Severity.WARN and finding.title == "the critic is worse than a constant"
    assert 115 < finding.step < 160
    assert "M4" not in modes(watch(off_by(1.1))[1])
    columns = off_by(2.0)
    del columns["return_var"]
    assert "M4" not in modes(watch(columns)[1])


@pytest.mark.parametrize(("size", "alarms"), [(512, True), (64, True), (16, False)])
def test_the_value_loss_of_a_small_rollout_may_swing(size, alarms):
    columns = healthy()
    columns["value_loss"] = 0.1 * columns["return_var"] * np.exp(0.75 * SWING)
    columns["explained_var"] = np.full(N, 0.1)
    assert ("M4" in modes(watch(columns, rollout_size=size)[1])) == alarms


def test_the_rest_that_a_good_critic_leaves_may_swing():
    columns = healthy()
    columns["value_loss"] = 0.02 * columns["return_var"] * np.exp(SWING)
    columns["explained_var"] = np.full(N, 0.95)
    _, events = watch(columns)
    assert modes(events, Severity.WARN).isdisjoint({"M4"})
    columns["explained_var"] = np.where(TIME % 2, 0.95, 0.1)
    assert "M4" in modes(watch(columns)[1], Severity.WARN)


def lagging(**changes):
    columns = off_by(3.0, late=TIME >= 110)
    columns["lr"], columns["lr_critic"] = np.full(N, 1e-5), np.full(N, 1e-5)
    return columns | changes


def test_a_critic_that_lags_is_told_from_one_that_overshoots():
    assert check_of(opening(watch(lagging())[1], "M4").finding, "critic-too-slow") == "confirmed"
    fast = opening(watch(lagging(lr_critic=np.full(N, 4e-4)))[1], "M4").finding
    assert check_of(fast, "critic-learning-rate") == "confirmed"
    assert check_of(fast, "critic-too-slow") == "refuted"
    swinging = lagging()
    swinging["value_loss"] = swinging["value_loss"] * np.exp((TIME >= 110) * SWING)
    assert check_of(opening(watch(swinging)[1], "M4").finding, "critic-too-slow") == "refuted"
    unknown = lagging()
    del unknown["lr"], unknown["lr_critic"]
    finding = opening(watch(unknown, learning_rate=None, critic_learning_rate=None)[1], "M4").finding
    assert check_of(finding, "critic-too-slow") == "open"


def raises(columns, **settings):
    """What `act` does to the critic's rate, which the run then has."""
    engine, remediation, done = (
        Diagnostics(RunSettings(planned_rollouts=200, rollout_size=64, **settings)),
        Remediation(),
        [],
    )
    for row in range(len(columns["value_loss"])):
        values = {name: float(c[row]) for name, c in columns.items() if math.isfinite(c[row])}
        values["lr_critic"] *= remediation.factors.get("critic_lr", 1.0)
        engine.observe(Record(row + 1, values))
        done += [action for action in remediation.decide(engine) if action.lever == "critic_lr"]
    return done, remediation


def test_a_critic_that_lags_is_made_faster_up_to_ten_times_the_policys_rate():
    done, remediation = raises(lagging())
    # sqrt(3 - 1) deviations to go: 3 sqrt(2) times, then to ten times the policy's rate and no further.
    assert done[0].value == pytest.approx(3 * math.sqrt(2), rel=1e-2)
    assert math.prod(action.value for action in done if not action.is_reversal) <= 10.0 + 1e-9
    # The loss stayed where it was, so everything is taken back.
    assert done[-1].is_reversal and remediation.factors["critic_lr"] == pytest.approx(1.0)


def test_a_rate_far_below_the_policys_is_brought_to_it_at_once():
    done, _ = raises(lagging(lr_critic=np.full(N, 1e-8)))
    assert done[0].value == pytest.approx(1000.0)


@pytest.mark.parametrize(("own", "rates"), [(1e-5, [1e-4, 1e-5]), (1e-8, [1e-5, 1e-4, 1e-5])])
def test_once_it_has_caught_up_the_critic_is_as_slow_as_it_was_but_for_a_slip(own, rates):
    error = np.where(TIME < 110, 0.5, np.where(TIME < 140, 30.0, 0.9))
    columns = lagging(lr_critic=np.full(N, own))
    columns["value_loss"] = error * columns["return_var"] / 2
    done, remediation = raises(columns)
    assert own * np.cumprod([action.value for action in done]) == pytest.approx(rates)
    # The median of eight has caught up when five of them have.
    assert done[-1].is_reversal and done[-1].row == 145 and "caught up" in done[-1].reason
    assert remediation.factors["critic_lr"] == pytest.approx(rates[-1] / own) and remediation.disabled == {}


def test_a_critic_that_catches_up_by_itself_is_left_alone_and_so_is_one_that_has_nothing_to_explain():
    # From three times the error of a constant at 110 down, to a half of that excess every six rollouts.
    falls = lagging()
    error = np.where(TIME < 110, 0.5, 1 + 20 * np.exp(-(TIME - 110) / 8))
    falls["value_loss"] = error * falls["return_var"] / 2
    falls["explained_var"] = np.where(TIME < 110, 0.5, 0.1)
    events = watch(falls)[1]
    assert "M4" in modes(events)
    first, *rest = raises(falls)[0]
    # The jump itself looks as if it would stay; from then on it falls.
    assert first.row < 130 and [action.is_reversal for action in rest] == [True]
    nothing = lagging(explained_var=np.zeros(N))
    nothing["value_loss"] = nothing["return_var"] / 2
    assert raises(nothing)[0] == []


def test_a_rate_far_too_high_is_brought_near_the_policys():
    done, _ = raises(lagging(lr_critic=np.full(N, 6e-4)))
    assert done[0].value == pytest.approx(0.05)  # 60 times -> 3 times
    done, _ = raises(lagging(lr_critic=np.full(N, 1.0)))
    assert done[0].value == pytest.approx(0.03)
