"""What cannot work is refused before any model is loaded, and the message says what to do."""

import copy
import json

import pytest
import torch
import trl.trainer.rloo_trainer
from datasets import Dataset, DatasetDict, IterableDataset
from transformers import LlamaForCausalLM, PreTrainedModel

from rlhf_ext import PPOConfig, PPOTrainer, load_data
from rlhf_ext.trainer import checks


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
        ({"critic_learning_rate": -1e-5}, "critic_learning_rate must be a number and not negative"),
        ({"critic_warmup_rollouts": -1}, "critic_warmup_rollouts must be a number and not negative"),
        ({"entropy_coef": float("nan")}, "entropy_coef must be a number"),
        ({"beta": float("inf")}, "beta must be a number"),
        ({"kl_target": float("inf"), "kl_unit": "token"}, "kl_target must be a positive number"),
        ({"kl_unit": "sequence"}, "is the unit of kl_target, which is not set"),
        ({"max_completion_length": 0}, "max_completion_length must be at least 1"),
        ({"generation_kwargs": {"max_new_tokens": 4}}, "use max_completion_length"),
        ({"ref_model_sync_steps": 8}, "ref_model_sync_steps=8 has no effect"),
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
        ({"prompt": ["a"] * 15 + [None]}, r"Row 15 .* empty prompt \(None\)"),
        ({"prompt": [[]] * 16}, r"empty prompt \(\[\]\)"),
        ({"prompt": [[5, 6, 7]] * 16}, r"holds token ids \(\[5, 6, 7\]\).* pass the texts"),
        ({"input_ids": [[5, 6, 7]] * 16}, "no column `prompt`.* pass the texts"),
        ({"prompt": [{"role": "user", "content": "a"}] * 16}, "a list of messages"),
        ({"prompt": [["a", "b"]] * 16}, r"holds \['a', 'b'\], which is no prompt"),
        ({"prompt": [[{"from": "human", "value": "a"}]] * 16}, "which is no prompt"),
        ({"prompt": ["a"] * 15 + ["b" * 400]}, "Row 15 .* 400 tokens"),
        ({"prompt": ["a"] * 3}, "3 prompts, but one rollout takes 8"),
        ({"prompt": ["a"] * 16, "image": ["x"] * 16}, "text only"),
    ],
    ids=[
        "no-prompt", "empty", "blank", "blank-chat", "none", "no-messages", "token-ids", "old-format", "message", "list",
        "sharegpt", "long", "few", "images",
    ],
)  # fmt: skip
def test_data_is_refused_before_a_model_is_loaded(columns, message, tiny_policy_path, ppo_config, no_model_is_loaded):
    with pytest.raises(ValueError, match=message):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), Dataset.from_dict(columns))


def test_texts_and_conversations_in_one_file_are_refused(tiny_policy_path, ppo_config, no_model_is_loaded, tmp_path):
    rows = [json.dumps({"prompt": prompt}) for prompt in ("a", [{"role": "user", "content": "b"}]) * 8]
    (tmp_path / "mixed.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=r"Row 1 .* is a conversation, unlike the rows before"):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), load_data(str(tmp_path / "mixed.jsonl")))


def test_a_stream_with_an_empty_prompt_is_refused_where_it_comes(tiny_policy_path, ppo_config):
    stream = IterableDataset.from_generator(lambda: ({"prompt": "" if i == 5 else "a"} for i in range(16)))
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(), stream)
    with pytest.raises(ValueError, match="empty prompt"):
        trainer.train()


def test_conversations_for_a_tokenizer_without_a_chat_template_are_refused(
    tiny_policy_path, tiny_tokenizer, ppo_config, no_model_is_loaded
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    chats = Dataset.from_dict({"prompt": [[{"role": "user", "content": "a"}]] * 16})
    with pytest.raises(ValueError, match="no chat template"):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), chats, processing_class=tokenizer)


def test_all_splits_at_once_are_refused(tiny_policy_path, prompts, ppo_config, no_model_is_loaded):
    with pytest.raises(TypeError, match="DatasetDict with the splits train, test; pass one of them"):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), DatasetDict(train=prompts, test=prompts))


def test_other_settings_than_ppos_are_refused(tiny_policy_path, prompts, tmp_path, no_model_is_loaded):
    with pytest.raises(TypeError, match=r"must be a rlhf_ext.PPOConfig, got .*RLOOConfig"):
        PPOTrainer(tiny_policy_path, ones, trl.RLOOConfig(str(tmp_path), use_cpu=True, bf16=False), prompts)


def test_config_and_tokenizer_are_those_of_the_revision(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config, monkeypatch
):
    asked = []
    loaded = {
        checks.AutoConfig: checks.AutoConfig.from_pretrained(tiny_policy_path),
        checks.AutoTokenizer: tiny_tokenizer,
    }
    for auto, result in loaded.items():
        monkeypatch.setattr(auto, "from_pretrained", lambda name, result=result, **kw: asked.append(kw) or result)
    args = ppo_config(model_init_kwargs={"revision": "v2", "token": "t", "dtype": "float32"})
    checks.check_inputs(tiny_policy_path, args, prompts, None, None)
    assert [{name: kw.get(name) for name in args.model_init_kwargs} for kw in asked] == [
        {"revision": "v2", "token": "t", "dtype": None}
    ] * 2


def test_no_dataset_is_refused(tiny_policy_path, ppo_config, no_model_is_loaded):
    with pytest.raises(ValueError, match="train_dataset"):
        PPOTrainer(tiny_policy_path, ones, ppo_config())


def test_a_tokenizer_without_eos_is_refused(tiny_policy_path, tiny_tokenizer, prompts, ppo_config, no_model_is_loaded):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        PPOTrainer(tiny_policy_path, ones, ppo_config(), prompts, processing_class=tokenizer)


def test_a_reward_model_that_pads_with_eos_is_refused(
    tiny_policy_path, tiny_reward_path, tiny_tokenizer, prompts, ppo_config
):
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
