"""Runs that look alarming and are healthy: nothing at WARN or above."""

import numpy as np
import pytest
from runs import healthy, modes, noise, records, settings, watch

from rlhf_ext.diagnostics import Diagnostics, Severity


def entropy_falls_while_the_score_rises():
    columns = healthy()
    columns["entropy_tok"] = columns["entropy_tok"][0] * np.exp(-2.2 * np.linspace(0, 1, 240))
    columns["score_mean"] = 1.5 * np.linspace(0, 1, 240) + noise(np.random.default_rng(1), 240, 0.12)
    return columns, {}


def kl_rises_to_a_high_target():
    return healthy(target=40.0), {"kl_target": 40.0}


def kl_overshoots_as_controllers_do():
    columns = healthy()
    bump = 1 + 0.4 * np.exp(-(((np.arange(240) - 90) / 25) ** 2))
    columns["kl_ref_seq"] = columns["kl_ref_seq"] * bump
    columns["kl_ref_tok"] = columns["kl_ref_tok"] * bump
    return columns, {}


def critic_warms_up():
    columns = healthy()
    cold = np.exp(-np.arange(240) / 5)
    columns["value_loss"] = columns["value_loss"] * (1 + 100 * cold)
    columns["explained_var"] = columns["explained_var"] - 5 * cold
    columns["kl_ref_seq"][:20] *= 0.01
    return columns, {"critic_warmup_rollouts": 20}


def length_grows_and_is_worth_it():
    columns = healthy()
    growth = 1 + 1.2 * np.clip((np.arange(240) - 60) / 120, 0, 1)
    columns["len_mean"] = columns["len_mean"] * growth
    columns["score_len_corr"] = 0.1 + 0.4 * (growth - 1) + noise(np.random.default_rng(1), 240, 0.05)
    rise = 0.8 * (growth - 1)
    columns["score_mean"] = columns["score_mean"] + rise
    columns["quality"] = columns["quality"] + rise
    return columns, {}


def curriculum_jumps():
    columns = healthy()
    late = np.arange(240) >= 130
    for name, shift in (("score_mean", -1.0), ("quality", -0.0), ("entropy_tok", 0.4), ("len_mean", 8.0)):
        columns[name] = columns[name] + shift * late
    columns["score_std"] = columns["score_std"] * np.where(late, 1.5, 1.0)
    return columns, {}


def small_batch():
    columns = healthy()
    rng = np.random.default_rng(5)
    columns["kl_se"] = columns["kl_se"] * 2
    columns["kl_ref_seq"] = columns["kl_ref_seq"] + noise(rng, 240, 1.0) * columns["kl_se"]
    columns["score_mean"] = columns["score_mean"] + noise(rng, 240, 0.25)
    columns["value_loss"] = columns["value_loss"] * np.exp(noise(rng, 240, 0.2))
    columns["grad_norm"] = columns["grad_norm"] * np.exp(noise(rng, 240, 0.5))
    return columns, {"rollout_size": 16}


def learning_rate_restarts():
    columns = healthy()
    columns["lr"] = 1e-5 * (1 - (np.arange(240) % 80) / 80 * 0.9)
    columns["value_loss"] = columns["value_loss"] * (1 + 3 * np.exp(-(np.arange(240) % 80) / 4))
    return columns, {}


def scores_of_zero_or_one():
    columns = healthy()
    rate = np.clip(0.02 + 0.7 * np.linspace(0, 1, 240) + noise(np.random.default_rng(1), 240, 0.02), 0.01, 0.99)
    columns["score_mean"], columns["score_std"] = rate, np.sqrt(rate * (1 - rate))
    columns["score_max"], columns["adv_std"] = np.ones(240), columns["score_std"]
    columns["value_loss"] = columns["value_loss"] * columns["score_std"] ** 2 / columns["return_var"]
    columns["return_var"] = columns["score_std"] ** 2
    return columns, {}


HEALTHY = [
    entropy_falls_while_the_score_rises,
    kl_rises_to_a_high_target,
    kl_overshoots_as_controllers_do,
    critic_warms_up,
    length_grows_and_is_worth_it,
    curriculum_jumps,
    small_batch,
    learning_rate_restarts,
    scores_of_zero_or_one,
]


@pytest.mark.parametrize("make", HEALTHY, ids=lambda make: make.__name__)
def test_a_run_that_only_looks_alarming(make):
    columns, changes = make()
    assert modes(watch(columns, **changes)[1]) == set()


@pytest.mark.parametrize("n", [50, 100, 240, 400])
def test_plain_healthy_runs_are_silent(n):
    for seed in range(2):
        _, events = watch(healthy(n, seed), planned_rollouts=n)
        assert modes(events, Severity.INFO) == set()


def test_a_resume_that_repeats_rollouts_and_loses_the_optimizer():
    columns = healthy()
    rollouts = list(records(columns))
    columns["value_loss"][150:158] *= 12
    again = list(records(columns))
    diagnostics = Diagnostics(settings())
    events = [e for record in rollouts[:170] + again[150:200] for e in diagnostics.observe(record)]
    _, steps, losses = diagnostics.history.logged("value_loss", 72)
    assert steps.tolist() == list(range(149, 201))
    assert losses[steps == 151] == again[150].values["value_loss"]
    events += [e for record in again[200:] for e in diagnostics.observe(record)]
    assert modes(events) == set()


def test_a_run_of_unknown_length_is_judged_too():
    assert modes(watch(healthy(), planned_rollouts=None)[1], Severity.INFO) == set()
