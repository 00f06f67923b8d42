"""Facts about a run as a whole: the healthy start, the self-test, and a task with a known answer."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from rlhf_ext import PPOTrainer


def vowels(completions, **_):
    return [sum(text.count(v) for v in "aeiou") / 4 for text in completions]


def test_a_healthy_start_moves_away_from_ratio_one_epoch_by_epoch(tiny_policy_path, prompts, ppo_config):
    args = ppo_config(
        per_device_train_batch_size=16, steps_per_generation=1, num_iterations=4, max_steps=4, logging_steps=1,
        learning_rate=1e-4, lr_scheduler_type="constant", max_completion_length=12, epsilon=0.2,
    )  # fmt: skip
    trainer = PPOTrainer(tiny_policy_path, vowels, args, prompts)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "kl/update" in row]
    kl = [row["kl/update"] for row in rows]
    clipped = [row["policy/clip_fraction"] for row in rows]
    print("kl/update", *(f"{x:.4f}" for x in kl), "clip fraction", *(f"{x:.3f}" for x in clipped))
    assert len(kl) == 4
    assert kl[0] == pytest.approx(0.0, abs=1e-8)
    assert rows[0]["policy/ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert rows[0]["policy/first_pass_deviation"] < 1e-4
    assert kl[1] < kl[2] < kl[3]
    assert max(clipped) < 0.3


def test_the_self_test_stops_a_run_with_dropout(tiny_policy_path, prompts, ppo_config):
    policy = LlamaForCausalLM.from_pretrained(tiny_policy_path, attention_dropout=0.5)
    trainer = PPOTrainer(
        policy, vowels, ppo_config(), prompts, processing_class=AutoTokenizer.from_pretrained(tiny_policy_path)
    )
    with pytest.raises(RuntimeError, match="dropout"):
        trainer.train()


def test_the_self_test_stops_a_run_with_another_temperature(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, vowels, ppo_config(), prompts)
    forward = trainer._forward

    def warmer(*args, **kwargs):
        outputs = forward(*args, **kwargs)
        return outputs._replace(logprobs=outputs.logprobs * 1.01) if torch.is_grad_enabled() else outputs

    trainer._forward = warmer
    with pytest.raises(RuntimeError, match="away from 1"):
        trainer.train()


def test_absolute_positions_do_not_count_the_padding(tiny_tokenizer, prompts, ppo_config):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    trainer = PPOTrainer(GPT2LMHeadModel(config), vowels, ppo_config(), prompts, processing_class=tiny_tokenizer)
    sequences = []
    for extra in (0, 7):
        ids = [tiny_tokenizer("Say it")["input_ids"]]
        other = [tiny_tokenizer("Say it" + "x" * extra)["input_ids"]]
        from rlhf_ext.rollout import Sequences

        sequences.append(Sequences.from_lists(ids + other, [[5, 6, 7], [8, 9]], tiny_tokenizer.pad_token_id))
    with torch.no_grad():
        alone, padded = (trainer._forward(trainer.model, s).logprobs[0] for s in sequences)
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


def test_a_bandit_reaches_the_softmax_optimum(tmp_path, tiny_tokenizer, ppo_config):
    """One token per answer and rewards by hand: the optimum is pi_ref * exp(r / beta) / Z."""
    torch.manual_seed(0)
    beta, size = 0.5, 12
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        pad_token_id=0, eos_token_id=1, bos_token_id=None, initializer_range=0.15, tie_word_embeddings=False,
    )  # fmt: skip
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, size)}}, "w2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    rewards = torch.linspace(-0.5, 1.0, size)[torch.randperm(size)]
    policy = LlamaForCausalLM(config)
    prompt = torch.tensor([[3]])
    with torch.no_grad():
        reference = policy(prompt).logits[0, -1].softmax(0)
    optimum = (reference.log() + rewards / beta).softmax(0)

    def by_hand(completion_ids, **_):
        return [float(rewards[ids[0]]) for ids in completion_ids]

    args = ppo_config(
        beta=beta, max_completion_length=1, per_device_train_batch_size=256, steps_per_generation=1, num_iterations=2,
        max_steps=160, learning_rate=5e-3, lr_scheduler_type="linear", epsilon=0.2, normalize_advantages=False,
        vf_coef=0.5, value_clip_range=None, logging_steps=1000,
    )  # fmt: skip
    data = Dataset.from_dict({"prompt": ["w3"] * 256})
    trainer = PPOTrainer(policy, by_hand, args, data, processing_class=tokenizer)
    trainer.train()
    with torch.no_grad():
        found = trainer.model(prompt).logits[0, -1].softmax(0)
    distance = 0.5 * (found - optimum).abs().sum().item()
    start = 0.5 * (reference - optimum).abs().sum().item()
    assert start > 0.2
    assert distance < 0.05
