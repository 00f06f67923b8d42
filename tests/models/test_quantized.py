"""QLoRA: four roles on one base in 4 bits, with an optimizer in 8 bits."""

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from rlhf_ext import PPOTrainer
from rlhf_ext.models.reward_adapter import RewardAdapter

NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture
def reward_adapter_path(tmp_path, tiny_policy_path, tiny_tokenizer):
    torch.manual_seed(5)
    base = AutoModelForSequenceClassification.from_pretrained(tiny_policy_path, num_labels=1)
    config = LoraConfig(r=2, target_modules="all-linear", task_type="SEQ_CLS", modules_to_save=["score"])
    folder = str(tmp_path / "reward-adapter")
    get_peft_model(base, config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


def test_four_roles_train_on_one_4_bit_base(
    tiny_policy_path, reward_adapter_path, prompts, ppo_config, tmp_path, monkeypatch
):
    # Some CPUs have a kernel in bfloat16 that is used in evaluation mode alone; GPUs have one kernel for both modes.
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False, raising=False)
    args = ppo_config(
        beta=0.1, optim="adamw_8bit", learning_rate=1e-2, gradient_checkpointing=True, max_steps=16,
        model_init_kwargs={"dtype": "float32"},
    )  # fmt: skip
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = PPOTrainer(
        tiny_policy_path, reward_adapter_path, args, prompts, quantization_config=NF4, peft_config=lora
    )
    layers = [m for m in trainer.model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert len(layers) == 2 * 7  # no role has brought linear layers of its own
    assert isinstance(trainer.reward_funcs[0].model, RewardAdapter)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    assert type(trainer.optimizer.optimizer).__name__ == "AdamW" and trainer.optimizer.optimizer.args.optim_bits == 8
    assert trainer.critic.value_head.linear.weight.dtype == torch.float32
    rollouts = [row for row in trainer.state.log_history if "objective/score" in row]
    assert all(row["policy/first_pass_deviation"] < 1e-3 for row in rollouts)
    assert rollouts[0]["kl/ref"] == pytest.approx(0.0, abs=1e-5) and rollouts[-1]["kl/ref_k3"] > 1e-4
    moved = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert moved == trained and {part for name in trained for part in name.split(".")} >= {"default", "critic"}
    trainer.save_model(str(tmp_path / "out"))
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path, quantization_config=NF4, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, tmp_path / "out")
    # TRL trains the adapter in bfloat16; PEFT loads the same numbers in float32.
    saved, own = get_peft_model_state_dict(policy), get_peft_model_state_dict(trainer.model)
    assert saved.keys() == own.keys() and all(torch.equal(saved[name], own[name].float()) for name in own)


def test_a_resumed_4_bit_run_is_the_run_never_stopped(
    tiny_policy_path, reward_adapter_path, prompts, ppo_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(bnb.nn.modules, "has_avx512bf16", lambda: False, raising=False)

    def run(folder, **kwargs):
        args = ppo_config(
            output_dir=str(tmp_path / folder), beta=0.1, optim="adamw_8bit", learning_rate=1e-2, max_steps=6,
            save_strategy="steps", save_steps=3, model_init_kwargs={"dtype": "float32"},
        )  # fmt: skip
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
        trainer = PPOTrainer(
            tiny_policy_path, reward_adapter_path, args, prompts, quantization_config=NF4, peft_config=lora
        )
        trainer.train(**kwargs)
        seconds = ("time/", "step_time", "train_")
        return trainer, [
            {k: v for k, v in row.items() if not k.startswith(seconds)} for row in trainer.state.log_history
        ]

    whole, log = run("whole")
    resumed, resumed_log = run("resumed", resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert resumed_log == log
    own = dict(whole.model.named_parameters())
    assert {p.dtype for name, p in own.items() if ".lora_A." in name} >= {torch.bfloat16}
    for name, parameter in resumed.model.named_parameters():
        assert parameter.dtype == own[name].dtype and torch.equal(parameter, own[name]), name


def test_a_critic_of_its_own_is_not_made_of_quantised_weights(tiny_policy_path, tiny_reward_path, prompts, ppo_config):
    judge = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path, quantization_config=NF4)
    with pytest.raises(ValueError, match="cannot start from a quantised LlamaForSequenceClassification"):
        PPOTrainer(tiny_policy_path, judge, ppo_config(beta=0.1), prompts)
