"""Saved adapters: trained further, and merged."""

import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_ext import PPOTrainer, merge_adapter
from rlhf_ext.models.reward_adapter import RewardAdapter
from rlhf_ext.rollout import Sequences

IDS = torch.tensor([[5, 6, 7, 9, 10]])


def code_points(completions, **_):
    return [sum(map(ord, text)) / 500 for text in completions]


def lora():
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)


@pytest.fixture
def adapter_path(tmp_path, tiny_policy_path, tiny_tokenizer):
    torch.manual_seed(3)
    folder = str(tmp_path / "adapter")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_path), lora()).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def logits(model):
    with torch.no_grad():
        return model.eval()(IDS).logits


def test_a_saved_adapter_is_trained_further_and_is_its_own_reference(
    adapter_path, tiny_policy_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    start = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_path), adapter_path)
    trainer = PPOTrainer(adapter_path, code_points, ppo_config(beta=0.1, learning_rate=1e-2), prompts)
    torch.testing.assert_close(logits(trainer.model), logits(start), rtol=1e-5, atol=1e-5)
    trainer.train()
    rollouts = [row for row in trainer.state.log_history if "objective/score" in row]
    assert rollouts[0]["kl/ref"] == pytest.approx(0.0, abs=1e-5) and rollouts[-1]["kl/ref_k3"] > 1e-3
    sequences = Sequences.from_lists([IDS[0, :3].tolist()], [IDS[0, 3:].tolist()], tiny_tokenizer.pad_token_id)
    expected = logits(start)[0, 2:4].log_softmax(-1)[torch.arange(2), IDS[0, 3:]]
    torch.testing.assert_close(trainer._reference_logprobs(sequences)[0], expected, rtol=1e-5, atol=1e-5)
    trainer.save_model(str(tmp_path / "out"))
    saved = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_path), tmp_path / "out")
    torch.testing.assert_close(logits(saved), logits(trainer.model), rtol=1e-5, atol=1e-5)
    assert (logits(saved) - logits(start)).abs().max() > 1e-2


def in_hub_cache(folder, cache, repository, revision):
    """Puts a folder into a cache of the Hub, as the given revision of a repository."""
    place = cache / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, place / "snapshots" / f"{revision:0<40}")
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / revision).write_text(f"{revision:0<40}")


def test_adapters_are_found_with_the_arguments_that_reach_the_hub(
    adapter_path, tiny_policy_path, tiny_reward_adapter_path, tiny_tokenizer, prompts, ppo_config, tmp_path
):
    in_hub_cache(adapter_path, tmp_path / "cache", "me/policy", "main")
    torch.manual_seed(4)
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_path), lora()).save_pretrained(tmp_path / "v2")
    in_hub_cache(tmp_path / "v2", tmp_path / "cache", "me/policy", "v2")
    in_hub_cache(tiny_reward_adapter_path, tmp_path / "cache", "me/reward", "main")
    args = ppo_config(beta=0.1, model_init_kwargs={"cache_dir": str(tmp_path / "cache"), "revision": "v2"})
    trainer = PPOTrainer(
        "me/policy", "me/reward", args, prompts, processing_class=tiny_tokenizer,
        reward_processing_classes=tiny_tokenizer,
    )  # fmt: skip
    v2 = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_policy_path), tmp_path / "v2")
    torch.testing.assert_close(logits(trainer.model), logits(v2), rtol=1e-5, atol=1e-5)
    assert isinstance(trainer.reward_funcs[0].model, RewardAdapter)


def test_a_new_adapter_on_a_saved_one_is_refused(adapter_path, prompts, ppo_config):
    with pytest.raises(ValueError, match="is a saved adapter, and PPO trains it further"):
        PPOTrainer(adapter_path, code_points, ppo_config(), prompts, peft_config=lora())


def test_a_policy_that_would_not_learn_is_refused(adapter_path, tiny_policy_path, tiny_tokenizer, prompts, ppo_config):
    def base():
        return AutoModelForCausalLM.from_pretrained(tiny_policy_path)

    for_inference = PeftModel.from_pretrained(base(), adapter_path)
    for policy in (for_inference, base().requires_grad_(False)):
        with pytest.raises(ValueError, match="No parameter of the policy requires a gradient"):
            PPOTrainer(policy, code_points, ppo_config(), prompts, processing_class=tiny_tokenizer)
    named = PeftModel.from_pretrained(base(), adapter_path, adapter_name="mine", is_trainable=True)
    with pytest.raises(ValueError, match="must be named 'default'; this PeftModel has mine"):
        PPOTrainer(named, code_points, ppo_config(), prompts, processing_class=tiny_tokenizer)
    # A frozen base is what a new adapter is for.
    PPOTrainer(
        base().requires_grad_(False), code_points, ppo_config(beta=0.1), prompts, processing_class=tiny_tokenizer,
        peft_config=lora(),
    )  # fmt: skip


def test_a_merged_adapter_is_a_plain_model_with_the_same_outputs(
    adapter_path, tiny_policy_path, prompts, ppo_config, tmp_path
):
    trainer = PPOTrainer(adapter_path, code_points, ppo_config(beta=0.1, learning_rate=1e-2), prompts)
    trainer.train()
    trainer.save_model()
    out = str(tmp_path / "merged")
    merge_adapter(trainer.args.output_dir, out)
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert type(merged).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(merged), logits(trainer.model), rtol=1e-4, atol=1e-5)
    assert AutoTokenizer.from_pretrained(out).eos_token == "<|im_end|>"
    assert merged.generation_config.eos_token_id == trainer.model.generation_config.eos_token_id
