"""X17: each mistake in the settings is named, and good settings pass."""

import pytest
from runs import settings

from rlhf_ext.diagnostics import RunSettings, preflight

MISTAKES = {
    "kl-unit": ({"kl_unit": None}, {}),
    "kl-target-far": ({"kl_unit": "token"}, {}),
    "kl-target-near": ({"kl_target": 0.1}, {}),
    "no-kl-penalty": ({"beta": 0.0, "kl_target": None}, {}),
    # exp(240 * log(1 + 0.2 * 64 / 10000)) = 1.36
    "controller-inert": ({"kl_controller": "ziegler"}, {}),
    "sampler": ({}, {"top_k": 50}),
    "temperature-not-scored": ({"temperature": 0.7}, {"temperature_is_scored": False}),
    "dropout": ({}, {"dropout": 0.1}),
    "float16": ({"dtype": "float16"}, {}),
    "gradient-not-clipped": ({}, {"clips_gradient": False}),
    "critic-learning-rate": ({"critic_learning_rate": 1e-3}, {}),
    "epochs": ({"num_epochs": 20}, {}),
    "short-run": ({"planned_rollouts": 30}, {}),
    "critic-warmup": ({"critic_warmup_rollouts": 200}, {}),
    "small-rollout": ({"rollout_size": 8}, {}),
    "missing-eos": ({"missing_eos_penalty": 0.0}, {}),
}
GOOD = {"missing_eos_penalty": 1.0}
GOOD_SAMPLER = {
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "min_new_tokens": 0,
    "dropout": 0.0,
    "temperature_is_scored": True,
    "clips_gradient": True,
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_alone(name):
    changed, sampler = MISTAKES[name]
    found = preflight(settings(**GOOD | changed), **GOOD_SAMPLER | sampler)
    assert [finding.title for finding in found] == [f"settings: {name}"]
    assert found[0].mode == "X17" and found[0].causes[0].remedy


def test_good_settings_pass_and_unknown_ones_are_not_judged():
    assert preflight(settings(**GOOD), **GOOD_SAMPLER) == []
    assert preflight(RunSettings()) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [("top_p", 0.9), ("min_p", 0.05), ("repetition_penalty", 1.1), ("min_new_tokens", 8), ("top_k", 1)],
)
def test_every_setting_of_the_sampler_is_named_with_its_value(name, value):
    (finding,) = preflight(RunSettings(), **{name: value})
    assert f"{name}={value}" in finding.summary


def test_ziegler_moves_in_a_long_run_and_the_worst_comes_first():
    assert preflight(settings(**GOOD, kl_controller="ziegler", planned_rollouts=2000)) == []
    found = preflight(settings(**GOOD, dtype="float16", kl_target=0.1))
    assert [finding.severity.name for finding in found] == ["WARN", "INFO"]
