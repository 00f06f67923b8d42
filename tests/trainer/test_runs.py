"""Whole runs on tiny models, and the facts that must hold of them."""

import copy
import os

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    MixtralConfig,
    MixtralForCausalLM,
)

from rlhf_ext import PPOTrainer
from rlhf_ext.models.scoring import RewardModelScorer

EVERY_ROLLOUT = {
    "objective/score", "objective/score_raw", "objective/reward", "kl/ref", "kl/ref_token", "kl/ref_k3", "kl/beta",
    "kl/target", "kl/update", "policy/entropy", "policy/clip_fraction", "policy/ratio_max", "policy/loss",
    "policy/first_pass_deviation", "value/loss", "value/explained_variance", "value/clip_fraction",
    "completions/mean_length", "completions/length_p10", "completions/length_p50", "completions/length_p90",
    "completions/eos_fraction", "grad_norm", "time/generate", "time/score", "time/update",
}  # fmt: skip

# Of a sum of eight float32 log-probabilities of about 5 nats that two forwards computed.
ROUNDING = 1e-5


def code_points(completions, **_):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(ord(character) % 7 for character in text) / 10 for text in texts]


def constant(completions, **_):
    return [0.0] * len(completions)


def lora(**overrides):
    settings = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
    return LoraConfig(**{**settings, **overrides})


def rollout_rows(trainer):
    return [row for row in trainer.state.log_history if "objective/score" in row]


def test_every_rollout_logs_every_metric_once(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(kl_target=6.0, kl_unit="sequence"), prompts)
    trainer.train()
    rows = rollout_rows(trainer)
    assert [row["step"] for row in rows] == [4, 8]
    for row in rows:
        assert not EVERY_ROLLOUT - set(row)
    assert rows[0]["kl/ref"] == pytest.approx(0.0, abs=1e-5)
    # sigma / sqrt(2 * 6), from the spread of the first rollout's scores
    assert rows[0]["kl/beta"] == pytest.approx(rows[0]["objective/score_std"] / 12**0.5, rel=1e-6)


def test_lora_trains_the_adapter_alone_and_saves_a_loadable_policy(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1), prompts, peft_config=lora())
    trainer.train()
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    kept = {
        k.replace(".base_layer", "").removeprefix("base_model.model."): v
        for k, v in trainer.model.state_dict().items()
    }
    for name, parameter in base.state_dict().items():
        assert torch.equal(parameter, kept[name])
    trainer.save_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        loaded = PeftModel.from_pretrained(base, trainer.args.output_dir).eval()(ids).logits
        torch.testing.assert_close(loaded, trainer.model.eval()(ids).logits, rtol=1e-5, atol=1e-5)
        with trainer.model.disable_adapter():
            assert (loaded - trainer.model(ids).logits).abs().max() > 1e-3


def test_the_reference_of_an_existing_adapter_is_its_start(tiny_policy_path, prompts, ppo_config):
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    policy = get_peft_model(base, lora(init_lora_weights=False))
    start = {k: v.clone() for k, v in policy.state_dict().items() if ".default." in k}
    tokenizer = AutoTokenizer.from_pretrained(tiny_policy_path)
    trainer = PPOTrainer(policy, code_points, ppo_config(beta=0.1), prompts, processing_class=tokenizer)
    trainer.train()
    assert rollout_rows(trainer)[0]["kl/ref"] == pytest.approx(0.0, abs=ROUNDING)
    state = trainer.model.state_dict()
    assert any(not torch.equal(state[k], v) for k, v in start.items())
    for name, value in start.items():
        assert torch.equal(state[name.replace(".default.", ".ref.")], value)


def test_a_policy_instance_without_a_path_keeps_a_copy_as_reference(
    tiny_policy_path, tiny_tokenizer, prompts, ppo_config
):
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    with torch.no_grad():
        policy.lm_head.weight.mul_(2)  # no longer what its path would load
    trainer = PPOTrainer(policy, code_points, ppo_config(beta=0.1), prompts, processing_class=tiny_tokenizer)
    trainer.train()
    assert rollout_rows(trainer)[0]["kl/ref"] == pytest.approx(0.0, abs=ROUNDING)


def test_a_reward_model_reads_the_token_ids_with_eos(tiny_reward_path, tiny_tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path).eval()
    scorer = RewardModelScorer(model, tiny_tokenizer, tiny_tokenizer, "rm", batch_size=2)
    eos = tiny_tokenizer.eos_token_id
    completions = [[40, 41, eos], [50], [60, 61, 62, 63]]
    texts = tiny_tokenizer.batch_decode(completions, skip_special_tokens=True)
    scores = scorer(["hello", "a", "some words"], texts, completions)
    with torch.no_grad():
        for prompt, ids, score in zip(["hello", "a", "some words"], completions, scores, strict=True):
            row = torch.tensor([tiny_tokenizer(prompt)["input_ids"] + ids])
            hidden = model.model(row).last_hidden_state[0, -1]
            assert score == pytest.approx(float(model.score(hidden)), rel=1e-4, abs=1e-5)


def test_a_reward_model_with_another_tokenizer_reads_text(tiny_reward_path, tiny_tokenizer):
    import copy

    other = copy.deepcopy(tiny_tokenizer)
    other.add_tokens(["extra"])
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path).eval()
    scorer = RewardModelScorer(model, tiny_tokenizer, other, "rm", batch_size=2)
    assert not scorer.reads_ids
    (score,) = scorer(["hello "], ["world"], [[9, 9, other.eos_token_id]])
    with torch.no_grad():
        row = torch.tensor([tiny_tokenizer("hello world")["input_ids"] + [tiny_tokenizer.eos_token_id]])
        assert score == pytest.approx(float(model(row).logits[0, 0]), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_stored_numbers_centre_and_scale_the_scores(
    normalize, tiny_policy_path, tiny_reward_path, prompts, ppo_config
):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_path)
    model.config.score_mean, model.config.score_std = 0.5, 2.0
    trainer = PPOTrainer(tiny_policy_path, model, ppo_config(beta=0.1, normalize_scores=normalize), prompts)
    trainer.train()
    for row in rollout_rows(trainer):
        scaled = (row["objective/score_raw"] - 0.5) / 2.0 if normalize else row["objective/score_raw"]
        assert row["objective/score"] == pytest.approx(scaled, rel=1e-4, abs=1e-5)


def test_weights_add_several_reward_functions(tiny_policy_path, prompts, ppo_config):
    def length(completions, **_):
        return [float(len(text)) for text in completions]

    trainer = PPOTrainer(
        tiny_policy_path, [code_points, length], ppo_config(beta=0.1, reward_weights=[2.0, -0.5]), prompts
    )
    trainer.train()
    row = rollout_rows(trainer)[0]
    expected = 2.0 * row["rewards/code_points/mean"] - 0.5 * row["rewards/length/mean"]
    assert row["objective/score"] == pytest.approx(expected, rel=1e-4)


def test_completions_without_a_score_are_left_out(tiny_policy_path, prompts, ppo_config):
    def half(completions, **_):
        return [None if i % 2 else 1.0 + i for i in range(len(completions))]

    trainer = PPOTrainer(tiny_policy_path, half, ppo_config(beta=0.1, max_steps=1), prompts)
    trainer.train()
    masks = torch.cat([batch["completion_mask"] for batch in trainer._buffered_inputs])
    assert (masks.sum(1) == 0).sum() == 4
    advantages = torch.cat([batch["advantages"] for batch in trainer._buffered_inputs])
    assert (advantages[masks.sum(1) == 0] == 0).all()


def test_truncated_completions_are_left_out_where_that_is_asked(tiny_policy_path, prompts, ppo_config):
    # Half of the vocabulary's bytes end an answer, so that some answers end and some are cut.
    policy = AutoModelForCausalLM.from_pretrained(tiny_policy_path)
    policy.generation_config.eos_token_id = list(range(1, 40))
    args = ppo_config(beta=0.1, max_steps=1, mask_truncated_completions=True)
    trainer = PPOTrainer(
        policy, code_points, args, prompts, processing_class=AutoTokenizer.from_pretrained(tiny_policy_path)
    )
    trainer.train()
    kept = [bool(mask.any()) for batch in trainer._buffered_inputs for mask in batch["completion_mask"]]
    ended = [
        any(1 <= token < 40 for token in ids.tolist())
        for batch in trainer._buffered_inputs
        for ids in batch["completion_ids"]
    ]
    assert kept == ended and len(set(kept)) == 2


def test_a_stream_of_prompts_trains(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1), prompts.to_iterable_dataset())
    trainer.train()
    assert [row["step"] for row in rollout_rows(trainer)] == [4, 8]


def test_the_load_balancing_loss_of_experts_is_part_of_the_loss(tiny_tokenizer, prompts, ppo_config):
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, pad_token_id=tiny_tokenizer.pad_token_id,
        eos_token_id=tiny_tokenizer.eos_token_id, bos_token_id=None,
        experts_implementation="eager",  # torch 2.8 has the grouped kernel on GPUs alone
    )  # fmt: skip
    torch.manual_seed(0)
    start = MixtralForCausalLM(config)
    gates = []
    for coefficient in (0.0, 10.0):
        args = ppo_config(beta=0.0, vf_coef=0.0, max_steps=1, optim="sgd", router_aux_loss_coef=coefficient)
        trainer = PPOTrainer(copy.deepcopy(start), constant, args, prompts, processing_class=tiny_tokenizer)
        trainer.train()
        gates.append(trainer.model.state_dict()["model.layers.0.mlp.gate.weight"])
    before = start.state_dict()["model.layers.0.mlp.gate.weight"]
    # Equal scores leave no advantage, so nothing but the balance of the experts moves the gate.
    assert torch.equal(gates[0], before) and (gates[1] - before).abs().max() > 1e-6


@pytest.mark.parametrize("num_generations", [1, 2])
def test_conversations_and_several_answers_per_prompt(num_generations, tiny_policy_path, prompts, ppo_config):
    chats = prompts.map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1, num_generations=num_generations), chats)
    trainer.train()
    logged = trainer._logs["prompt"]
    assert len({str(prompt) for prompt in logged}) == 8 // num_generations


def test_evaluation_measures_held_out_prompts(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(
        tiny_policy_path, code_points, ppo_config(beta=0.1), prompts, eval_dataset=prompts.select(range(6))
    )
    metrics = trainer.evaluate()
    assert metrics["eval_kl/ref"] == pytest.approx(0.0, abs=ROUNDING)
    assert 0 <= metrics["eval_completions/eos_fraction"] <= 1
    assert {"eval_objective/score", "eval_objective/score_raw", "eval_completions/mean_length"} <= set(metrics)


@pytest.mark.parametrize("critic", ["head", "model"])
def test_a_saved_policy_is_a_plain_model_with_the_critic_beside_it(critic, tiny_policy_path, prompts, ppo_config):
    from safetensors import safe_open

    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1, critic=critic), prompts)
    trainer.train()
    trainer.save_model()
    folder = trainer.args.output_dir
    with safe_open(os.path.join(folder, "model.safetensors"), "pt") as file:
        assert not [key for key in file.keys() if "critic" in key]
    with safe_open(os.path.join(folder, "critic", "value_head.safetensors"), "pt") as file:
        assert torch.equal(file.get_tensor("linear.weight"), trainer.critic.value_head.linear.weight.detach())
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, trainer.model.eval()(ids).logits, rtol=1e-5, atol=1e-5)


def test_prompts_of_one_length_and_gradient_checkpointing_run(tiny_policy_path, ppo_config):
    data = Dataset.from_dict({"prompt": ["same"] * 16})
    args = ppo_config(beta=0.1, gradient_checkpointing=True, log_completions=False)
    trainer = PPOTrainer(tiny_policy_path, code_points, args, data, peft_config=lora())
    trainer.train()
    assert rollout_rows(trainer)[0]["policy/first_pass_deviation"] < 1e-4


def test_what_a_reward_function_logs_is_logged(tiny_policy_path, prompts, ppo_config):
    def logging(completions, log_extra, log_metric, **_):
        log_extra("first", [text[:1] for text in completions])
        log_metric("letters", float(len(completions)))
        return [float(i) for i in range(len(completions))]

    trainer = PPOTrainer(tiny_policy_path, logging, ppo_config(beta=0.0, max_steps=8), prompts)
    trainer.train()
    assert [row["letters"] for row in rollout_rows(trainer)] == [8.0, 8.0]
    table = trainer._logs
    assert list(table["extra"]["first"]) == [text[:1] for text in table["completion"]]
    assert not trainer._pending_extra_logs and not trainer._pending_metrics


def test_evaluation_means_are_over_prompts_not_batches(tiny_policy_path, prompts, ppo_config):
    held_out = Dataset.from_dict({"prompt": [f"Say {i}" for i in range(6)], "score": [0, 1, 2, 3, 4, None]})
    args = ppo_config(beta=0.0, per_device_eval_batch_size=4)
    trainer = PPOTrainer(tiny_policy_path, lambda score=None, **_: score, args, prompts, held_out)
    metrics = trainer.evaluate()
    # Batches of 4 and 2 prompts, of which the last has no score; the mean of their means would be 2.75.
    assert metrics["eval_rewards/<lambda>/mean"] == metrics["eval_objective/score"] == pytest.approx(2.0)


def test_a_loss_that_is_not_finite_never_reaches_the_weights(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.1), prompts)
    trainer.args.entropy_coef = float("nan")  # every term is finite, their sum is not
    before = [p.detach().clone() for p in trainer.model.parameters()]
    with pytest.raises(RuntimeError, match=r"The loss is not finite .* at step 3, as at 2 steps before"):
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(before, trainer.model.parameters(), strict=True))


def test_a_second_call_resumes_the_controller_of_the_checkpoint(tiny_policy_path, prompts, ppo_config, tmp_path):
    args = ppo_config(
        output_dir=str(tmp_path), save_strategy="steps", save_steps=4, max_steps=12, kl_target=0.5, kl_unit="sequence",
        kl_controller="multiplicative",
    )  # fmt: skip
    trainer = PPOTrainer(tiny_policy_path, code_points, args, prompts)
    trainer.train()
    first = [row["kl/beta"] for row in rollout_rows(trainer)]
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert [row["kl/beta"] for row in rollout_rows(trainer)] == first
    assert first[1] != first[2]


def test_without_a_reference_no_kl_to_it_is_logged(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, code_points, ppo_config(beta=0.0, max_steps=4), prompts, prompts)
    trainer.train()
    logged = {name for row in [*trainer.state.log_history, trainer.evaluate()] for name in row}
    assert not {name for name in logged if "kl/ref" in name or "kl/beta" in name} and "kl/update" in logged
