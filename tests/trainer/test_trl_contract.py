"""Everything private that PPOTrainer takes from TRL and transformers: a new release must fail here, not in training."""

import inspect

import pytest
import torch
import trl
import trl.models
import trl.trainer.utils
from packaging.version import Version
from trl import RLOOConfig, RLOOTrainer

from rlhf_ext import PPOTrainer, SFTTrainer

SIGNATURES = {
    "_generate": ["self", "prompts"],
    "_calculate_rewards": ["self", "inputs", "prompts", "completions", "completion_ids_list"],
    "_generate_and_score_completions": ["self", "inputs"],
    "_prepare_inputs": ["self", "generation_batch"],
    "compute_loss": ["self", "model", "inputs", "return_outputs", "num_items_in_batch"],
    "_compute_loss": ["self", "model", "inputs"],
    "training_step": ["self", "model", "inputs", "num_items_in_batch"],
    "prediction_step": ["self", "model", "inputs", "prediction_loss_only", "ignore_keys"],
    "_generate_single_turn": ["self", "prompt_ids", "images", "multimodal_fields"],
    "create_accelerator_and_postprocess": ["self"],
    "create_optimizer": ["self"],
    "create_scheduler": ["self", "num_training_steps", "optimizer"],
    "_load_best_model": ["self"],
    "_save": ["self", "output_dir", "state_dict"],
    "_save_checkpoint": ["self", "model", "trial"],
    "_load_from_checkpoint": ["self", "resume_from_checkpoint", "model"],
    "_finalize_training": ["self", "trial", "num_train_samples", "start_time"],
    "_get_train_sampler": ["self", "dataset"],
    "_push_from_checkpoint": ["self", "checkpoint_folder"],
    "_finish_current_push": ["self"],
    "init_hf_repo": ["self", "token"],
    "push_to_hub": ["self", "commit_message", "blocking", "token", "revision"],
    "create_model_card": ["self", "model_name", "dataset_name", "tags"],
    "save_model": ["self", "output_dir", "_internal_call"],
    "_get_output_dir": ["self", "trial"],
    "_get_grad_norm": ["self", "model", "grad_norm"],
}
ATTRIBUTES = {
    "_buffered_inputs", "_step", "_metrics", "_logs", "_tokenizer", "eos_token_ids", "reward_weights", "reward_funcs",
    "reward_func_names", "aux_loss_enabled", "router_aux_loss_coef", "mask_truncated_completions", "temperature",
    "num_iterations", "ref_model", "accelerator", "current_gradient_accumulation_steps", "is_deepspeed_enabled",
    "is_fsdp_enabled", "_pending_extra_logs", "_pending_metrics", "use_vllm",
}  # fmt: skip


def ones(completions, **_):
    return [float(i) for i in range(len(completions))]


@pytest.fixture
def trainer(tiny_policy_path, prompts, ppo_config):
    trainer = PPOTrainer(tiny_policy_path, ones, ppo_config(max_steps=1), prompts)
    trainer.train()
    return trainer


def test_the_version_is_the_one_that_was_read():
    assert Version("1.16") <= Version(trl.__version__) < Version("1.17")


@pytest.mark.parametrize("name", sorted(SIGNATURES))
def test_a_method_has_the_signature_that_is_relied_on(name):
    method = getattr(RLOOTrainer, name)
    parameters = list(inspect.signature(inspect.unwrap(method)).parameters)
    assert parameters[: len(SIGNATURES[name])] == SIGNATURES[name]


def test_the_attributes_are_there_after_a_step(trainer):
    assert not {name for name in ATTRIBUTES if not hasattr(trainer, name)}
    assert isinstance(trainer._buffered_inputs, list) and isinstance(trainer._buffered_inputs[0], dict)
    assert set(trainer._logs) >= {"prompt", "completion", "rewards", "advantages"}


def test_generate_returns_ids_and_texts(trainer):
    prompt_ids, completion_ids, completions = trainer._generate(["one", "two and"])
    assert [len(prompt_ids), len(completion_ids), len(completions)] == [2, 2, 2]
    assert all(isinstance(token, int) for ids in (*prompt_ids, *completion_ids) for token in ids)
    assert all(isinstance(text, str) for text in completions)


def test_rewards_come_as_sequences_by_functions(trainer):
    rewards = trainer._calculate_rewards([{"prompt": "a"}] * 3, ["a"] * 3, ["x"] * 3, [[5]] * 3)
    assert rewards.tolist() == [[0.0], [1.0], [2.0]]


def test_the_fused_head_gives_logprobs_and_entropy_aligned_with_the_next_token(trainer):
    model = trainer.model
    ids = torch.tensor([[3, 4, 5, 6]])
    labels = torch.tensor([[-100, 5, 6, -100]])
    outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids), shift_labels=labels, role="actor_critic")
    expected = model(input_ids=ids).logits.log_softmax(-1)
    assert outputs.log_probs.shape == outputs.entropy.shape == outputs.state_values.shape == (1, 4)
    torch.testing.assert_close(outputs.log_probs[0, 1:3], expected[0, [1, 2], [5, 6]], rtol=1e-5, atol=1e-5)


def test_the_config_still_refuses_one_generation(tmp_path):
    # When this fails, PPOConfig's way round it can go.
    with pytest.raises(ValueError, match="at least 2 generations"):
        RLOOConfig(str(tmp_path), num_generations=1, use_cpu=True, bf16=False)


@pytest.mark.parametrize(
    ("module", "name"),
    [(trl.trainer.utils, "add_fused_lm_head"), (trl.trainer.utils, "disable_dropout_in_model"),
     (trl.trainer.utils, "is_async_callable"), (trl.trainer.utils, "get_callable_name"),
     (trl.models, "prepare_deepspeed"), (trl.models, "prepare_fsdp")],
)  # fmt: skip
def test_a_helper_is_where_it_was(module, name):
    assert callable(getattr(module, name))


def test_the_sft_trainer_takes_what_the_parent_takes_and_hands_it_on(monkeypatch):
    parents = inspect.signature(trl.SFTTrainer.__init__)
    ours = inspect.signature(SFTTrainer.__init__)
    assert [(p.name, p.kind, p.default) for p in ours.parameters.values()] == [
        (p.name, p.kind, p.default) for p in parents.parameters.values()
    ]
    given = {name: f"the {name}" for name in parents.parameters if name not in ("self", "args")}
    taken = {}
    monkeypatch.setattr(
        trl.SFTTrainer, "__init__", lambda *args, **kwargs: taken.update(parents.bind(*args, **kwargs).arguments)
    )
    trainer = SFTTrainer(**given)
    assert taken == {"self": trainer, "args": None, **given}
