"""Reward models as reward functions: what they are loaded with, and under which names they are logged."""

import shutil
from types import SimpleNamespace

import pytest

from rlhf_ext.trainer import reward_functions
from rlhf_ext.trainer.reward_errors import RewardFunctionError, call_or_explain
from rlhf_ext.trainer.reward_functions import as_reward_function, unique_names


@pytest.fixture
def loaded_with(monkeypatch):
    """The arguments of every call that loads a reward model, which then loads it without them."""
    calls = []
    load = reward_functions.load_reward_model
    monkeypatch.setattr(reward_functions, "load_reward_model", lambda path, **kw: calls.append(kw) or load(path))
    return calls


def test_what_names_the_policys_repository_does_not_reach_the_reward_model(
    tiny_reward_path, tiny_tokenizer, ppo_config, loaded_with
):
    shared = {"dtype": "float32", "device_map": "cpu", "attn_implementation": "eager", "trust_remote_code": True}
    shared |= {"token": "t", "cache_dir": "cache"}
    of_policy = {"revision": "v2", "subfolder": "policy", "variant": "fp16", "num_labels": 7}
    args = ppo_config(model_init_kwargs={**shared, **of_policy})
    as_reward_function(tiny_reward_path, None, tiny_tokenizer, args)
    assert loaded_with == [shared]
    assert args.model_init_kwargs == {**shared, **of_policy}


@pytest.mark.parametrize("kind", ["MULTI_GPU", "DEEPSPEED"])
def test_a_reward_model_is_not_spread_over_the_devices_of_other_processes(
    kind, tiny_reward_path, tiny_tokenizer, ppo_config, loaded_with
):
    args = ppo_config(model_init_kwargs={"device_map": "auto", "dtype": "float32"})
    args.distributed_state = SimpleNamespace(distributed_type=kind)
    as_reward_function(tiny_reward_path, None, tiny_tokenizer, args)
    assert loaded_with == [{"trust_remote_code": False, "dtype": "float32"}]


def test_names_are_told_apart_by_numbers():
    assert unique_names(["a", "b", "a", "a_2", "a"]) == ["a", "b", "a_2", "a_2_2", "a_3"]


@pytest.mark.parametrize("trusts", [False, True])
def test_a_reward_model_is_trusted_as_the_policy_is(trusts, tiny_reward_path, tiny_tokenizer, ppo_config, loaded_with):
    as_reward_function(tiny_reward_path, None, tiny_tokenizer, ppo_config(trust_remote_code=trusts))
    assert loaded_with == [{"trust_remote_code": trusts}]


def test_every_reward_model_has_its_own_metrics_also_one_given_twice(
    tiny_policy_path, tiny_reward_path, prompts, ppo_config, tmp_path, monkeypatch
):
    import torch
    from transformers import AutoModelForSequenceClassification

    from rlhf_ext import PPOTrainer

    monkeypatch.chdir(tmp_path)
    paths = ["run0/reward", "run1/reward", "run1/reward"]
    for path, constant in zip(paths[:2], (0.0, 3.0), strict=True):
        shutil.copytree(tiny_reward_path, path)
        model = AutoModelForSequenceClassification.from_pretrained(path)
        torch.nn.init.constant_(model.score.weight, constant)
        model.save_pretrained(path)
    trainer = PPOTrainer(tiny_policy_path, paths, ppo_config(max_steps=4, reward_weights=[1.0, 1.0, 0.0]), prompts)
    trainer.train()
    row = next(row for row in trainer.state.log_history if "objective/score" in row)
    assert row["rewards/run0/reward/mean"] == 0.0
    assert row["rewards/run1/reward/mean"] == pytest.approx(row["objective/score_raw"], rel=1e-4)
    assert row["rewards/run1/reward_2/mean"] == row["rewards/run1/reward/mean"]
    assert row["objective/score_raw"] != 0.0
    assert [len(column) for column in trainer._logs["rewards"].values()] == [8, 8, 8]


@pytest.mark.parametrize(("given", "name"), [("{}", "{}"), ("{}/", "{}"), ("{}/../tiny-reward", "{}")])
def test_the_name_of_a_reward_model_is_its_folder(given, name, tiny_reward_path, tiny_tokenizer, ppo_config):
    function = as_reward_function(given.format(tiny_reward_path), None, tiny_tokenizer, ppo_config())
    assert function.__name__ == name.format(tiny_reward_path).removeprefix("/")


def test_a_function_that_raises_is_called_again_up_to_the_guilty_sample_and_one_that_cannot_be_called_is_not():
    calls = []

    def raises_on_c(completions, **_):
        calls.append(completions)
        return [1 / (text != "c") for text in completions]

    columns = {"prompts": list("wxyz"), "completions": list("abcd")}
    with pytest.raises(RewardFunctionError, match=r"on sample 2 of 4 .*prompt 'y', completion 'c'"):
        call_or_explain(raises_on_c, "f", columns)
    assert calls == [["a", "b", "c", "d"], ["a"], ["b"], ["c"]]

    class NoColumns:
        called = 0

        def __call__(self, completions):
            NoColumns.called += 1

    with pytest.raises(RewardFunctionError, match=r"unexpected keyword argument 'prompts'.*others as \*\*kwargs"):
        call_or_explain(NoColumns(), "f", columns)
    assert NoColumns.called == 0
