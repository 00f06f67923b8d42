"""Memory that runs out: the phase, what was asked for, and what the plan says would lower it."""

import re

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerState

from rlhf_ext import PPOTrainer
from rlhf_ext.planning.advice import Change, changes_that_help
from rlhf_ext.planning.plan import plan_memory
from rlhf_ext.trainer import out_of_memory
from rlhf_ext.trainer.out_of_memory import OutOfMemory
from rlhf_ext.trainer.run_plan import plan_of_run

CUDA = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.50 GiB is free. "
    "Process 1 has 77.60 GiB memory in use. Of the allocated memory 70 GiB is allocated by PyTorch."
)


def too_much(*_, **__):
    return torch.empty(2**50)


def cuda(*_, **__):
    raise torch.OutOfMemoryError(CUDA)


def ones(completions, **_):
    return [1.0] * len(completions)


def fails_in_generation(trainer, monkeypatch, fail):
    monkeypatch.setattr(trainer.model, "generate", fail)


def fails_in_a_reward_function(trainer, monkeypatch, fail):
    trainer.reward_funcs[0] = fail


def fails_in_the_forward_of_scoring(trainer, monkeypatch, fail):
    monkeypatch.setattr(trainer, "_forward", fail)


def fails_in_the_optimizer(trainer, monkeypatch, fail):
    monkeypatch.setattr(torch.optim.AdamW, "step", fail)


@pytest.fixture
def plan(tiny_policy_path, prompts, ppo_config):
    """The plan of the runs below, of which each makes its own."""
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(beta=0.1), prompts)
    trainer.longest_prompt = 11
    return plan_of_run(trainer)


@pytest.mark.parametrize(
    ("breaks", "phase", "words", "fail"),
    [
        (fails_in_generation, "generate", "in generation, at step 1", too_much),
        (fails_in_a_reward_function, "score", "in scoring, at step 1", too_much),
        (fails_in_the_forward_of_scoring, "score", "in scoring, at step 1", cuda),
        (fails_in_the_optimizer, "update", "in the update, at step 1", cuda),
    ],
)
def test_the_phase_is_named_with_the_figures_of_its_plan(
    breaks, phase, words, fail, tiny_policy_path, prompts, ppo_config, monkeypatch, plan
):
    # What each change would give is in the test below: one is enough here, and fast.
    first = changes_that_help(plan, phase) if phase == "generate" else [Change("optim: x", 2**20)]
    monkeypatch.setattr(out_of_memory, "changes_that_help", lambda *_: first)
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(beta=0.1), prompts)
    breaks(trainer, monkeypatch, fail)
    with pytest.raises(OutOfMemory, match=words) as raised:
        trainer.train()
    message, cause = str(raised.value), raised.value.__cause__
    assert raised.value.phase == phase
    assert isinstance(cause, RuntimeError) and not isinstance(cause, OutOfMemory)
    asked = (
        "Tried to allocate 2.00 GiB. GPU 0 has a total" if fail is cuda else "you tried to allocate 4503599627370496 "
    )
    assert asked in message and "Process 1" not in message
    for name in ("generate", "score", "update"):
        assert f"{plan.phase(name).bytes / 2**20:.1f} MiB" in message
    assert f"each alone: {first[0].setting} -> {first[0].peak / 2**20:.1f} MiB" in message


def test_a_change_lowers_the_peak_of_its_phase(plan):
    names = {phase: {c.setting for c in changes_that_help(plan, phase)} for phase in ("generate", "score", "update")}
    assert "gradient_checkpointing: true" in names["update"] - names["generate"]
    assert "steps_per_generation: 1 (half the rollout)" in names["generate"]
    for phase in names:
        assert all(change.peak < plan.phase(phase).bytes for change in changes_that_help(plan, phase))


def test_without_a_plan_the_settings_of_the_phase_are_named(tiny_policy_path, prompts, ppo_config, monkeypatch):
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(beta=0.1, optim="sgd"), prompts)
    fails_in_generation(trainer, monkeypatch, too_much)
    with pytest.raises(OutOfMemory, match=r"Lower steps_per_generation \(a smaller rollout\)"):
        trainer.train()


def test_another_error_is_passed_on_as_it_is(tiny_policy_path, prompts, ppo_config, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("shapes cannot be multiplied")

    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(beta=0.1), prompts)
    fails_in_generation(trainer, monkeypatch, broken)
    with pytest.raises(RuntimeError, match=r"^shapes cannot be multiplied$"):
        trainer.train()


def test_trainers_that_look_for_smaller_batches_still_see_what_it_is():
    from accelerate.utils.memory import should_reduce_batch_size

    class Trainer:
        state = TrainerState()

    assert should_reduce_batch_size(
        OutOfMemory("update", out_of_memory.explain(Trainer, "update", RuntimeError(CUDA)))
    )


@pytest.mark.parametrize("critic", ["head", "adapter", "model"])
@pytest.mark.parametrize("reward", ["function", "model", "adapter"])
def test_the_plan_of_a_run_counts_the_weights_that_are_there(
    critic, reward, tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path, prompts, ppo_config
):
    function = {"function": ones, "model": tiny_reward_path, "adapter": tiny_reward_adapter_path}[reward]
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(tiny_policy_path, function, ppo_config(critic=critic), prompts, peft_config=lora)
    plan = plan_of_run(trainer)
    planned = sum(p.bytes for p in plan.peak.parts if p.what in ("weights", "adapter", "value head", "score head"))
    scorers = [f.model for f in trainer.reward_funcs if isinstance(getattr(f, "model", None), torch.nn.Module)]
    models = [trainer.model, *scorers]
    held = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    assert planned == held


def test_the_plan_of_a_run_is_that_of_its_recipe(tiny_policy_path, tiny_reward_path, prompts, ppo_config):
    from trl import ModelConfig

    from rlhf_ext.trainer.recipe_plan import Launch, settings_of_recipe

    args = ppo_config(gradient_accumulation_steps=2)
    trainer = PPOTrainer(tiny_policy_path, tiny_reward_path, args, prompts)
    trainer.longest_prompt = 12
    model_args = ModelConfig(model_name_or_path=tiny_policy_path, dtype="float32")
    settings, _ = settings_of_recipe(args, model_args, [tiny_reward_path], 12, Launch(on_gpu=False))
    mine, theirs = (
        {(m.phase, m.name): m.bytes for m in plan.moments} for plan in (plan_of_run(trainer), plan_memory(settings))
    )
    assert mine == theirs


def test_a_saved_adapter_that_is_trained_further_has_its_initial_state_in_the_plan(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    from peft import get_peft_model

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_path), lora).save_pretrained(tmp_path / "adapter")
    tiny_tokenizer.save_pretrained(tmp_path / "adapter")
    trainer = PPOTrainer(str(tmp_path / "adapter"), ones, ppo_config(), prompts)
    parts = {(part.role, part.what): part.bytes for part in plan_of_run(trainer).peak.parts}
    assert parts["reference", "adapter"] == parts["policy", "adapter"] > 0
    assert not re.search("reference weights", str(parts))
