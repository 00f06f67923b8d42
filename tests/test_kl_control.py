import json
import math

import pytest

from rlhf_ext.kl_control import KLMeasurement, auto_beta, make_kl_controller

ADAPTIVE = ("ziegler", "multiplicative", "log_pi")


def measure(mean, std=3.0, n=64):
    return KLMeasurement(mean, std, n)


def run(controller, means, **kwargs):
    return [controller.update(measure(mean, **kwargs)) for mean in means]


def test_ziegler_follows_the_2019_rule_by_hand():
    controller = make_kl_controller("ziegler", 0.2, target=6.0, unit="sequence")
    # error 6.6 / 6 - 1 = 0.1: beta * (1 + 0.1 * 500 / 10000) = 0.2 * 1.005
    assert controller.update(measure(6.6, n=500)) == pytest.approx(0.201, rel=1e-12)
    # error 12 / 6 - 1 = 1, clipped to 0.2: * (1 + 0.2 * 0.05) = * 1.01
    assert controller.update(measure(12.0, n=500)) == pytest.approx(0.201 * 1.01, rel=1e-12)
    # a negative KL saturates at -0.2: * 0.99
    assert controller.update(measure(-3.0, n=500)) == pytest.approx(0.201 * 1.01 * 0.99, rel=1e-12)


def test_multiplicative_leaves_the_band_alone_and_releases_smoothly():
    controller = make_kl_controller("multiplicative", 0.1, target=10.0, unit="sequence")
    assert run(controller, [8.1, 11.9]) == [0.1, 0.1]
    assert controller.update(measure(12.1)) == pytest.approx(0.12)  # above the band: * 1.2 at once
    # KL = 5: log error log(0.5) = -0.6931, beta * 1.2 ** -0.6931 = 0.12 * 0.8813
    assert controller.update(measure(5.0)) == pytest.approx(0.12 * 0.88130, rel=1e-4)
    # KL = 1: log error clipped to -1, beta / 1.2
    assert controller.update(measure(1.0)) == pytest.approx(0.12 * 0.88130 / 1.2, rel=1e-4)


def test_log_pi_waits_while_the_kl_approaches_and_answers_when_it_stalls():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    # A steady pace of 0.4 in sqrt(KL): slow at first in KL, which is no reason to lower beta.
    assert run(controller, [(0.4 * k) ** 2 for k in range(4)]) == [0.1] * 4
    run(controller, [1.44] * 4)
    assert controller.beta < 0.1
    assert controller.status == "tracking"


def test_log_pi_first_step_by_hand():
    # One rollout at twice the target: average = KL = 12, no slope, e = log(2), no previous error, so
    # log(beta) rises by gain_i * log 2 = (6 / 25) * 0.6931 = 0.16636; limit log(10) / 3 = 0.77 is not reached.
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    assert controller.update(measure(12.0)) == pytest.approx(0.1 * math.exp(0.24 * math.log(2)), rel=1e-9)


def test_log_pi_rises_before_the_target_is_passed():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    run(controller, [0.0, 1.5, 3.0, 4.5])
    before = controller.beta
    assert controller.update(measure(5.5)) > before


def test_token_and_sequence_units_give_the_same_path():
    length = 20
    path = [0.0, 2.0, 5.0, 9.0, 8.0, 7.0, 5.0, 5.0, 4.0]
    for kind in ("multiplicative", "log_pi"):
        sequence = make_kl_controller(kind, 0.1, target=6.0, unit="sequence", total_rollouts=25)
        token = make_kl_controller(kind, 0.1, target=6.0 / length, unit="token", total_rollouts=25)
        for kl in path:
            a = sequence.update(KLMeasurement(kl, 2.0, 64))
            b = token.update(KLMeasurement(kl / length, 2.0 / length, 64))
            assert a == pytest.approx(b, rel=1e-9)


@pytest.mark.parametrize("kind", ADAPTIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_measurement_that_is_not_finite_never_moves_beta(kind, bad):
    controller = make_kl_controller(kind, 0.1, target=6.0, unit="sequence")
    assert run(controller, [bad, bad]) == [0.1, 0.1]
    assert controller.status == "invalid" and not controller.wants_stop
    controller.update(measure(bad))
    assert controller.wants_stop
    controller.update(measure(6.0))
    assert not controller.wants_stop


def test_no_sequence_at_all_is_invalid():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence")
    controller.update(measure(6.0, n=0))
    assert controller.status == "invalid"


def test_a_kl_far_below_zero_freezes_log_pi_and_never_lowers_beta():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    run(controller, [3.0] * 4)
    beta = controller.beta
    run(controller, [-5.0] * 3, std=1.0)
    assert controller.beta == beta
    assert controller.status == "frozen" and "temperature" in controller.finding
    controller.update(measure(3.0))
    assert controller.status != "frozen"
    fresh = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    statuses = []
    for _ in range(3):
        fresh.update(measure(-5.0, std=1.0))
        statuses.append(fresh.status)
    assert statuses == ["hold", "hold", "frozen"]


def test_log_pi_stays_in_its_bounds_and_says_when_it_is_stuck():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=25)
    at_bound = []
    for _ in range(40):
        if controller.update(measure(60.0)) == 10.0:
            at_bound.append(controller.status)
    # A patience of 25 // 5 rollouts.
    assert at_bound[:5] == ["tracking"] * 4 + ["saturated"]
    assert controller.beta == pytest.approx(10.0)
    assert controller.status == "saturated" and "learning rate" in controller.finding


@pytest.mark.parametrize("total", [25, 100, 1000])
def test_no_step_of_log_pi_is_larger_than_its_rate_limit(total):
    up, down = {25: (2.0, 1.6), 100: (10 ** (1 / 12), 10 ** (1 / 20)), 1000: (1.1, 1.05)}[total]
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence", total_rollouts=total)
    for kl in [0, 0, 0, 0, 0, 0, 60, 60, 0, 0, 80, 0.1, 6, 6, 60] * 4:
        before = controller.beta
        after = controller.update(measure(kl))
        assert 1 / down - 1e-9 <= after / before <= up + 1e-9


@pytest.mark.parametrize("kind", ("fixed", *ADAPTIVE))
def test_a_restored_controller_continues_bit_for_bit(kind):
    means = [0.0, 1.0, 3.0, 5.5, 8.0, 9.5, 8.0, -4.0, 2.0, 2.0, 2.0, 1.5, 7.0, 12.0]
    whole = make_kl_controller(kind, 0.1, target=6.0, unit="sequence", total_rollouts=25)
    expected = run(whole, means)
    for cut in range(len(means)):
        first = make_kl_controller(kind, 0.1, target=6.0, unit="sequence", total_rollouts=25)
        run(first, means[:cut])
        state = json.loads(json.dumps(first.state_dict()))
        # The new controller starts elsewhere: everything that matters must come from the state.
        second = make_kl_controller(kind, 0.7, target=6.0, unit="sequence", total_rollouts=99)
        second.load_state_dict(state)
        assert run(second, means[cut:]) == expected[cut:]


@pytest.mark.parametrize(
    "change", [{"unit": "token"}, {"target": 5.0}, {"kind": "ziegler"}, {"version": 0}], ids=lambda c: next(iter(c))
)
def test_a_state_of_another_kind_is_refused(change):
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence")
    with pytest.raises(ValueError, match=next(iter(change))):
        controller.load_state_dict({**controller.state_dict(), **change})


def test_an_incomplete_state_is_refused():
    controller = make_kl_controller("log_pi", 0.1, target=6.0, unit="sequence")
    state = controller.state_dict()
    del state["slope"]
    with pytest.raises(ValueError, match="slope"):
        controller.load_state_dict(state)


def test_auto_beta_by_hand():
    assert auto_beta(1.0, 6.0, "sequence", 16.0) == pytest.approx(0.288675, rel=1e-5)  # 1 / sqrt(12)
    # 0.5 nats per token over 12 tokens is the same 6 nats.
    assert auto_beta(1.0, 0.5, "token", 12.0) == pytest.approx(0.288675, rel=1e-5)


@pytest.mark.parametrize("std", [0.0, math.nan, math.inf])
def test_auto_beta_refuses_scores_without_signal(std):
    with pytest.raises(ValueError, match="no signal"):
        auto_beta(std, 6.0, "sequence", 16.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "pid"}, "kind"),
        ({"beta": -0.1}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"target": 0.0}, "target"),
        ({"unit": None}, "unit"),
        ({"unit": "nats"}, "unit"),
        ({"target": None, "unit": None}, "target"),
        ({"beta": 0.0}, "cannot start at 0"),
    ],
)
def test_impossible_settings_are_refused(arguments, message):
    settings = {"kind": "log_pi", "beta": 0.1, "target": 6.0, "unit": "sequence"}
    with pytest.raises(ValueError, match=message):
        make_kl_controller(**{**settings, **arguments})
