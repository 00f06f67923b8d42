"""Where rollout, reference and reward meet: positions, adapters, penalties, padding."""

import copy

import pytest
import torch
import trl.trainer.rloo_trainer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM, PreTrainedModel

from rlhf_ext import PPOTrainer
from rlhf_ext.rollout import Sequences


def length(completions, **_):
    return [float(len(text)) for text in completions]


@pytest.fixture
def gpt2(tiny_tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tiny_tokenizer), n_positions=128, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=None, eos_token_id=tiny_tokenizer.eos_token_id, pad_token_id=tiny_tokenizer.pad_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def test_absolute_positions_start_at_ratio_one_with_uneven_prompts(gpt2, tiny_tokenizer, prompts, ppo_config):
    plain = copy.deepcopy(gpt2).eval()
    args = ppo_config(learning_rate=0.0, beta=0.1, max_steps=4)
    trainer = PPOTrainer(gpt2, length, args, prompts, processing_class=tiny_tokenizer)
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "objective/score" in row]
    assert row["policy/first_pass_deviation"] < 1e-4
    assert abs(row["policy/ratio_max"] - 1) < 1e-4
    rollout = {k: torch.cat([b[k] for b in trainer._buffered_inputs]) for k in trainer._buffered_inputs[0]}
    assert len(set(rollout["prompt_mask"].sum(1).tolist())) > 1
    for b in range(8):
        answer = rollout["completion_ids"][b][rollout["completion_mask"][b]]
        ids = torch.cat([rollout["prompt_ids"][b][rollout["prompt_mask"][b]], answer])
        with torch.no_grad():
            logp = plain(ids[None]).logits[0].log_softmax(-1)
        expected = logp[torch.arange(len(ids) - 1), ids[1:]][-len(answer) :]
        torch.testing.assert_close(rollout["old_logprobs"][b, : len(answer)], expected, rtol=1e-5, atol=1e-4)


def test_the_self_test_stops_a_run_with_other_positions_in_the_update(gpt2, tiny_tokenizer, prompts, ppo_config):
    trainer = PPOTrainer(gpt2, length, ppo_config(beta=0.1), prompts, processing_class=tiny_tokenizer)

    def count_from_one(_module, args, kwargs):
        if torch.is_grad_enabled():
            ids = kwargs["input_ids"]
            kwargs["position_ids"] = torch.arange(1, ids.size(1) + 1).expand_as(ids)
        return args, kwargs

    trainer.model.transformer.register_forward_pre_hook(count_from_one, with_kwargs=True)
    with pytest.raises(RuntimeError, match="away from 1"):
        trainer.train()


def test_reference_logprobs_of_an_existing_adapter_do_not_move(tiny_policy_path, tiny_tokenizer, prompts, ppo_config):
    torch.manual_seed(0)
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    policy = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_policy_path), adapter)
    start = copy.deepcopy(policy).eval()
    trainer = PPOTrainer(policy, length, ppo_config(beta=0.1), prompts, processing_class=tiny_tokenizer)
    trainer.train()
    sequences = Sequences.from_lists([[5, 6, 7], [8]], [[9, 10], [11, 12]], tiny_tokenizer.pad_token_id)
    found = trainer._reference_logprobs(sequences)
    now = trainer._forward_in_chunks(trainer.model, sequences).logprobs
    for b, row in enumerate(([5, 6, 7, 9, 10], [8, 11, 12])):
        with torch.no_grad():
            logp = start(torch.tensor([row])).logits[0].log_softmax(-1)
        expected = logp[torch.arange(len(row) - 1), torch.tensor(row[1:])][-2:]
        torch.testing.assert_close(found[b], expected, rtol=1e-5, atol=1e-5)
    assert (now - found).abs().max() > 1e-3  # the adapter being trained is the active one again


@pytest.mark.parametrize("peft", [False, True])
def test_rollouts_are_made_in_evaluation_mode_and_updates_in_training_mode(
    peft, tiny_policy_path, tiny_tokenizer, prompts, ppo_config
):
    adapter = LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM") if peft else None
    policy = LlamaForCausalLM.from_pretrained(tiny_policy_path)
    trainer = PPOTrainer(policy, length, ppo_config(beta=0.1, max_steps=4), prompts, processing_class=tiny_tokenizer,
                         peft_config=adapter)  # fmt: skip
    modes = {"rollout": set(), "update": set()}

    def remember(*_):
        modes["update" if torch.is_grad_enabled() else "rollout"].add(policy.model.layers[0].training)

    policy.model.layers[0].register_forward_pre_hook(remember)
    trainer.train()
    assert modes == {"rollout": {False}, "update": {True}}


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_clip_and_missing_eos_penalty_reach_the_advantages(
    pad_is_eos, tiny_policy_path, tiny_tokenizer, prompts, ppo_config
):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    policy = LlamaForCausalLM.from_pretrained(tiny_policy_path)
    generate = policy.generate

    def with_early_eos(*args, **kwargs):
        ids = generate(*args, **kwargs)
        ids[::2, -4] = tokenizer.eos_token_id  # every other answer ends with its fifth of eight tokens
        return ids

    policy.generate = with_early_eos
    args = ppo_config(
        beta=0.0, lam=1.0, normalize_advantages=False, missing_eos_penalty=0.75, score_clip=2.0, max_steps=1,
        num_iterations=1,
    )  # fmt: skip
    trainer = PPOTrainer(policy, lambda completions, **_: [2.5] * len(completions), args, prompts,
                         processing_class=tokenizer)  # fmt: skip
    trainer.train()
    rollout = {k: torch.cat([b[k] for b in trainer._buffered_inputs]) for k in trainer._buffered_inputs[0]}
    ended = 0
    for ids, mask, advantages in zip(
        rollout["completion_ids"], rollout["completion_mask"], rollout["advantages"], strict=True
    ):
        answer = ids[mask].tolist()
        has_eos = answer[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in answer[:-1]
        ended += has_eos
        # The value head starts at 0, so with lambda = gamma = 1 each advantage is the final score: without EOS
        # 2.5 - 0.75 = 1.75, which the clip leaves alone; with EOS 2.5, clipped to 2.
        assert advantages[mask].tolist() == pytest.approx([2.0 if has_eos else 1.75] * len(answer))
    assert 4 <= ended < 8


def test_a_reward_model_that_pads_with_eos_is_refused_before_it_is_loaded(
    tiny_policy_path, tiny_reward_path, tiny_tokenizer, prompts, ppo_config, monkeypatch
):
    def refuse(*_, **__):
        pytest.fail("a model was loaded before the input was checked")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.setattr(trl.trainer.rloo_trainer, "create_model_from_path", refuse)
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(ValueError, match="one token too early"):
        PPOTrainer(tiny_policy_path, tiny_reward_path, ppo_config(), prompts, reward_processing_classes=tokenizer)
