"""What cannot work is refused before any model is loaded, and the message says what to do."""

import pytest
import torch
import trl.trainer.rloo_trainer
from datasets import Dataset
from transformers import LlamaForCausalLM, PreTrainedModel

from rlhf_ext import PPOConfig, PPOTrainer


@pytest.fixture
def no_model_is_loaded(monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(trl.trainer.rloo_trainer, "create_model_from_path", refuse)


def ones(completions, **_):
    return [1.0] * len(completions)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_controller": "pid"}, "kl_controller"),
        ({"kl_placement": "everywhere"}, "kl_placement"),
        ({"kl_estimator": "k9"}, "kl_estimator"),
        ({"critic": "oracle"}, "critic"),
        ({"kl_target": 6.0}, "kl_unit"),
        ({"kl_target": 6.0, "kl_unit": "nats"}, "kl_unit"),
        ({"kl_target": -1.0, "kl_unit": "token"}, "kl_target"),
        ({"kl_controller": "log_pi"}, "kl_target"),
        ({"beta": "auto"}, "kl_target"),
        ({"beta": "much"}, "beta"),
        ({"beta": -0.1}, "beta"),
        ({"epsilon": 0.0}, "epsilon"),
        ({"epsilon": 1.0}, "epsilon"),
        ({"gamma": 1.5}, "gamma"),
        ({"lam": -0.1}, "lam"),
        ({"value_clip_range": 0.0}, "value_clip_range"),
        ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "multiple of gradient_accumulation_steps"),
        ({"num_generations": 3}, "divisible by num_generations"),
        ({"num_generations": 0}, "num_generations"),
        ({"per_device_train_batch_size": 1, "steps_per_generation": 1}, "one sequence"),
        ({"top_k": 50}, "top_k"),
        ({"top_p": 0.9}, "top_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "no_repeat_ngram_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"epsilon_high": 0.3}, "epsilon_high"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_settings_are_refused(settings, message, ppo_config):
    with pytest.raises(ValueError, match=message):
        ppo_config(**settings)


@pytest.mark.parametrize(
    ("old", "new"),
    [("cliprange", "epsilon"), ("kl_coef", "beta"), ("num_ppo_epochs", "num_iterations"),
     ("response_length", "max_completion_length"), ("cliprange_value", "value_clip_range")],
)  # fmt: skip
def test_names_of_the_old_config_are_explained(old, new, tmp_path):
    with pytest.raises(TypeError, match=f"`{old}` is now {new}"):
        PPOConfig(str(tmp_path), **{old: 1})


def test_mismatched_sampling_can_be_allowed(ppo_config):
    assert ppo_config(top_k=50, allow_mismatched_sampling=True).top_k == 50


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": ["a"] * 16}, "no column `prompt`"),
        ({"prompt": []}, "is empty"),
        ({"prompt": ["a"] * 15 + ["  "]}, "Row 15 .* empty prompt"),
        ({"prompt": [[{"role": "user", "content": ""}]] * 16}, "empty prompt"),
        ({"prompt": ["a"] * 15 + ["b" * 400]}, "Row 15 .* 400 tokens"),
        ({"prompt": ["a"] * 3}, "3 prompts, but one rollout takes 8"),
        ({"prompt": ["a"] * 16, "image": ["x"] * 16}, "text only"),
    ],
    ids=["no-prompt", "empty", "blank", "blank-chat", "long", "few", "images"],
)
def test_data_is_refused_before_a_model_is_loaded(columns, message, tiny_policy_path, ppo_config, no_model_is_loaded):
    with pytest.raises(ValueError, match=message):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), Dataset.from_dict(columns))


def test_no_dataset_is_refused(tiny_policy_path, ppo_config, no_model_is_loaded):
    with pytest.raises(ValueError, match="train_dataset"):
        PPOTrainer(tiny_policy_path, ones, ppo_config())


def test_a_tokenizer_without_eos_is_refused(tiny_policy_path, tiny_tokenizer, prompts, ppo_config, no_model_is_loaded):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), prompts, processing_class=tokenizer)


def test_a_reward_model_that_pads_with_eos_is_refused(
    tiny_policy_path, tiny_reward_path, tiny_tokenizer, prompts, ppo_config
):
    import copy

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="one token too early"):
        PPOTrainer(tiny_policy_path, tiny_reward_path, ppo_config(), prompts, reward_processing_classes=tokenizer)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (lambda n: [1.0] * (n - 1), "returned 7 rewards, but 8 were expected"),
        (lambda n: [None] * n, "None or NaN for every completion"),
        (lambda n: [float("nan")] * n, "None or NaN for every completion"),
        (lambda n: [float("inf")] * n, "infinite"),
    ],
    ids=["count", "none", "nan", "inf"],
)
def test_useless_scores_stop_the_run(values, message, tiny_policy_path, prompts, ppo_config):
    def reward(completions, **_):
        return values(len(completions))

    trainer = PPOTrainer(tiny_policy_path, reward, ppo_config(), prompts)
    with pytest.raises(ValueError, match=message):
        trainer.train()


def test_weights_that_are_not_finite_stop_the_run(tiny_policy_path, prompts, ppo_config):
    policy = LlamaForCausalLM.from_pretrained(tiny_policy_path)
    from transformers import AutoTokenizer

    trainer = PPOTrainer(
        policy, ones, ppo_config(beta=0.0), prompts, processing_class=AutoTokenizer.from_pretrained(tiny_policy_path)
    )
    with torch.no_grad():
        trainer.critic.value_head.linear.bias.fill_(float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        trainer.train()
