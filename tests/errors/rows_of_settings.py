"""Wrong settings, and wrong launch configurations."""

import json
import math
import sys
from pathlib import Path

import trl
from error_row import Row
from transformers import LlamaForCausalLM, TrainingArguments

from rlhf_ext import PPOConfig
from rlhf_ext.trainer.launch import check_optimizer_has_critic, check_saves_weights

CONFIGS = Path(__file__).parents[2] / "configs"
INF, NAN = math.inf, math.nan

# Settings, and what the message says of them.
VALUES = [
    ({"kl_controller": "pid"}, "kl_controller must be one of", "'multiplicative'", "got 'pid'"),
    ({"kl_placement": "everywhere"}, "kl_placement must be one of", "'terminal'", "got 'everywhere'"),
    ({"kl_estimator": "k9"}, "kl_estimator must be one of", "'k1'", "got 'k9'"),
    ({"critic": "oracle"}, "critic must be one of", "'head'", "got 'oracle'"),
    ({"diagnostics": "on"}, "diagnostics must be one of", "'advise'", "got 'on'"),
    ({"diagnostics": "act", "fp16": True}, "diagnostics='act'", "gradient scaler of fp16", "Use bf16"),
    ({"critic_learning_rate": -1e-5}, "critic_learning_rate must be a number and not negative", "-1e-05"),
    ({"critic_warmup_rollouts": -1}, "critic_warmup_rollouts must be a number and not negative", "-1"),
    ({"learning_rate": NAN}, "learning_rate must be a number and not negative", "nan"),
    ({"learning_rate": "1e-6"}, "learning_rate must be a number", "got '1e-6' (str)", "write 1.0e-6"),
    ({"epsilon": "small"}, "epsilon must be a number", "got 'small' (str)"),
    ({"gamma": None}, "gamma must be a number", "got None"),
    ({"max_completion_length": 8.5}, "max_completion_length must be a whole number", "got 8.5"),
    ({"entropy_coef": NAN}, "entropy_coef must be a number", "nan"),
    ({"beta": INF}, "beta must be a number", "inf"),
    ({"beta": "much"}, "beta must be a number or 'auto'", "'much'"),
    ({"beta": -0.1}, "beta must be a number and not negative", "-0.1", "rewards leaving the reference"),
    ({"beta": "auto"}, "beta='auto'", "needs a kl_target"),
    ({"kl_target": INF, "kl_unit": "token"}, "kl_target must be a positive number", "inf"),
    ({"kl_target": -1.0, "kl_unit": "token"}, "kl_target must be a positive number", "-1.0"),
    ({"kl_target": 6.0}, "kl_target=6.0", "needs kl_unit='sequence'", "or 'token'"),
    ({"kl_target": 6.0, "kl_unit": "nats"}, "kl_target=6.0", "needs kl_unit='sequence'", "got 'nats'"),
    ({"kl_unit": "sequence"}, "kl_unit='sequence'", "is the unit of kl_target, which is not set", "Set it too"),
    ({"kl_controller": "log_pi"}, "kl_controller='log_pi'", "needs a kl_target"),
    ({"beta": 0.0, "kl_target": 1.0, "kl_unit": "token"}, "beta=0", "nothing to measure"),
    ({"epsilon": 0.0}, "epsilon must lie in (0, 1), got 0.0", "0.1 to 0.2 is usual"),
    ({"epsilon": 1.0}, "epsilon must lie in (0, 1), got 1.0"),
    ({"gamma": 1.5}, "gamma must lie in [0, 1], got 1.5"),
    ({"lam": -0.1}, "lam must lie in [0, 1], got -0.1"),
    ({"value_clip_range": 0.0}, "value_clip_range must be positive or None, got 0.0"),
    ({"score_clip": -1.0}, "score_clip must be positive or None, got -1.0"),
    ({"max_completion_length": 0}, "max_completion_length must be at least 1 token, got 0"),
    ({"per_device_train_batch_size": 0}, "per_device_train_batch_size must be at least 1, got 0"),
    ({"num_generations": 0}, "num_generations must be at least 1, got 0"),
    ({"num_generations": 3}, "divisible by num_generations (3)"),
    ({"num_iterations": 0}, "num_iterations must be at least 1, got 0"),
    ({"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "steps_per_generation (3)",
     "a multiple of gradient_accumulation_steps (2)", "Choose a rollout size"),
    ({"per_device_train_batch_size": 1, "steps_per_generation": 1}, "A rollout of one sequence", "Raise per_device"),
    ({"top_k": 50}, "top_k=50", "another distribution", "Remove them", "allow_mismatched_sampling=True"),
    ({"top_p": 0.9}, "top_p=0.9", "Remove them"),
    ({"repetition_penalty": 1.1}, "repetition_penalty=1.1", "Remove them"),
    ({"generation_kwargs": {"no_repeat_ngram_size": 2}}, "no_repeat_ngram_size=2", "Remove them"),
    ({"generation_kwargs": {"max_new_tokens": 4}}, "max_new_tokens", "use max_completion_length"),
    ({"generation_kwargs": {"eos_token_id": 4}}, "eos_token_id", "set it in the model's generation_config"),
    ({"temperature": 0.0}, "temperature must be positive, got 0.0"),
    ({"sync_ref_model": True}, "sync_ref_model=True has no effect", "fixed reference"),
    ({"ref_model_sync_steps": 8}, "ref_model_sync_steps=8 has no effect"),
    ({"epsilon_high": 0.3}, "epsilon_high=0.3 has no effect", "use epsilon"),
    ({"probe_every": 0}, "probe_every must be at least 1, got 0"),
]  # fmt: skip
OLD_SETTINGS = {
    "cliprange": "epsilon",
    "cliprange_value": "value_clip_range",
    "kl_coef": "beta",
    "num_ppo_epochs": "num_iterations",
    "response_length": "max_completion_length",
}


def rloo(world):
    from rlhf_ext import PPOTrainer

    PPOTrainer(world.policy, len, trl.RLOOConfig(str(world.tmp_path), use_cpu=True, bf16=False), world.prompts)


def old_argument(name):
    return lambda world: world.trainer(**{name: "something"})


def not_installed(package, **settings):
    def act(world):
        # As `find_spec` sees a package that is not there.
        world.monkeypatch.setitem(sys.modules, package, None)
        world.trainer(settings=settings)

    return act


def plain_arguments(world):
    return TrainingArguments(str(world.tmp_path), use_cpu=True, bf16=False)


def zero3_without_weights(world):
    world.monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    config = json.loads((CONFIGS / "deepspeed" / "zero3.json").read_text())
    config["zero_optimization"]["stage3_gather_16bit_weights_on_model_save"] = False
    world.monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", world.file("zero3.json", json.dumps(config)))
    check_saves_weights(PPOConfig(str(world.tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=2))


def fsdp_without_model(world):
    world.monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    world.monkeypatch.setenv("FSDP_VERSION", "2")
    world.monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    check_saves_weights(plain_arguments(world))


def optimizer_of_deepspeed(world):
    config = json.loads((CONFIGS / "deepspeed" / "zero2.json").read_text())
    config["optimizer"] = {"type": "AdamW", "params": {}}
    world.monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    world.monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", world.file("zero2.json", json.dumps(config)))
    settings = {"per_device_train_batch_size": 2, "use_cpu": True, "bf16": False, "critic_learning_rate": 1e-4}
    check_optimizer_has_critic(PPOConfig(str(world.tmp_path), **settings))


def spread_instance(world):
    policy = LlamaForCausalLM(LlamaForCausalLM.config_class.from_pretrained(world.policy))
    next(policy.parameters()).ds_id = 0
    world.trainer(policy)


SETTINGS = [
    *(
        Row(f"settings: {settings}", lambda world, settings=settings: world.config(**settings), ValueError, tuple(words))
        for settings, *words in VALUES
    ),
    *(
        Row(f"old setting {old}", lambda world, old=old: world.config(**{old: 1}), TypeError, (f"`{old}` is now {new}",))
        for old, new in OLD_SETTINGS.items()
    ),
    Row("old argument reward_model", old_argument("reward_model"), TypeError, ("`reward_model` is now reward_funcs",)),
    Row("old argument tokenizer", old_argument("tokenizer"), TypeError, ("`tokenizer` is now processing_class",)),
    Row("settings of another trainer", rloo, TypeError, ("`args` must be a rlhf_ext.PPOConfig", "RLOOConfig")),
    Row("a tracker of no name", lambda w: w.trainer(settings={"report_to": ["wandbx"]}), ValueError,
        ("report_to='wandbx' is no tracker", "wandb")),
    Row("a tracker that is not installed", not_installed("mlflow", report_to=["mlflow"]), ImportError,
        ("report_to='mlflow'", "not installed", "pip install mlflow")),
    Row("vLLM that is not installed", not_installed("vllm", use_vllm=True), ImportError,
        ("use_vllm=True", "not installed", "pip install trl[vllm]", "use_vllm=False")),
    Row("an evaluation of nothing", lambda w: w.trainer(settings={"eval_strategy": "steps", "eval_steps": 2}), ValueError,
        ("eval_strategy='steps'", "Pass them as `eval_dataset`", "eval_strategy='no'")),
    Row("a warm-up longer than the run", lambda w: w.trainer(settings={"critic_warmup_rollouts": 2}), ValueError,
        ("critic_warmup_rollouts=2 takes 8 optimizer steps", "max_steps=8", "Lower critic_warmup_rollouts")),
    Row("a probe without prompts", lambda w: w.trainer(settings={"probe_every": 3}), ValueError,
        ("held-out prompts", "pass them as `eval_dataset`")),
    Row("a judge that is a model", lambda w: w.trainer(quality_fn="judge-model", eval_dataset=w.prompts), TypeError,
        ("`quality_fn` must be a plain Python function", "'judge-model'", "Wrap a model in one")),
    Row("an optimizer with its schedule", lambda w: w.trainer(optimizers=(None, "schedule")), ValueError,
        ("does not know the critic", "Pass optimizers=(optimizer, None)")),
    Row("launch: ZeRO-3 that saves no weights", zero3_without_weights, ValueError,
        ("ZeRO-3 would save no weights", "stage3_gather_16bit_weights_on_model_save", "configs/accelerate/zero3.yaml")),
    Row("launch: FSDP that saves no model", fsdp_without_model, ValueError,
        ("SHARDED_STATE_DICT would save no model", "FULL_STATE_DICT", "configs/accelerate/fsdp2.yaml")),
    Row("launch: an optimizer of DeepSpeed's own", optimizer_of_deepspeed, ValueError,
        ("critic_learning_rate would have no effect", "has its own optimizer", "Remove them there")),
    Row("launch: an instance spread by ZeRO-3", spread_instance, ValueError,
        ("`model`", "zero.Init", "pass its folder or id")),
]  # fmt: skip
