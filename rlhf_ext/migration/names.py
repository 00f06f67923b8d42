"""
Every name of TRL's PPO, from 0.x to 1.12, and where it is now.

Sources: `trl/trainer/ppo_config.py`, `ppo_trainer.py` and `ppov2_*.py` of 0.4.7, 0.11.4 and 0.12.2, and
`trl/experimental/ppo/` of 1.12.0. `docs/migration.md` shows these tables, and the errors of `PPOConfig` and `PPOTrainer`
speak from them.
"""

from dataclasses import dataclass

GONE = "gone"
UNKNOWN = "unknown"
"""Begins the `new` of a name that neither TRL's PPO had nor this one has."""


@dataclass(frozen=True)
class Change:
    """
    What became of a name.

    Args:
        new (`str`):
            Where it is now; begins with "gone" where it is nowhere.
        differs (`str`, *optional*):
            What behaves differently, and why.
    """

    new: str
    differs: str = ""


_ROLLOUT = (
    "A rollout is per_device_train_batch_size * steps_per_generation on each process (steps_per_generation is "
    "gradient_accumulation_steps by default), an optimizer step per_device_train_batch_size * gradient_accumulation_steps "
    "of it."
)
_FOLLOWS = "It was a result that the trainer wrote into its settings."
_TRACKING = "It was only shown by the tracker."
_SCORE_UNITS = (
    "A reward model of RewardTrainer carries the mean and spread of its scores, and those are used, fixed: a running mean "
    "would move the goal while PPO follows it."
)

OLD_NAMES = {
    "accelerator_kwargs": Change("accelerator_config"),
    "adap_kl_ctrl": Change(
        "kl_controller (with kl_target and kl_unit)",
        "The old controller is kl_controller='ziegler' with kl_unit='sequence'; with a target the default is 'log_pi', "
        "which settles within the run whatever its length.",
    ),
    "backward_batch_size": Change("gone: it follows from gradient_accumulation_steps", _FOLLOWS),
    "batch_size": Change("generation_batch_size", f"{_ROLLOUT} It counts the sequences of all processes."),
    "cliprange": Change("epsilon", "The default is 0.1, not 0.2."),
    "cliprange_value": Change(
        "value_clip_range", "The default is 0.5, not 0.2; it is in score units, and None switches it off."
    ),
    "compare_steps": Change(GONE, "Nothing read it."),
    "dataset_num_proc": Change("gone: prompts are tokenised at each rollout"),
    "early_stopping": Change(
        "gone: watch kl/update, and lower num_iterations or learning_rate where it grows",
        "Ending epochs early hid that the step was too large.",
    ),
    "exp_name": Change("run_name"),
    "forward_batch_size": Change("per_device_train_batch_size"),
    "global_backward_batch_size": Change("gone: it follows from gradient_accumulation_steps", _FOLLOWS),
    "global_batch_size": Change("gone: it follows from generation_batch_size", _FOLLOWS),
    "horizon": Change(
        "kl_controller='ziegler'",
        "Its horizon is 10000 sequences, as before: in a short run it hardly moves, which `rlhf-ext check` says.",
    ),
    "init_kl_coef": Change(
        "beta",
        "With a kl_target the default is 'auto', from the spread of the first scores; the penalty stands at the last token "
        "unless kl_placement='token'.",
    ),
    "is_encoder_decoder": Change("gone: encoder-decoder models are not supported"),
    "is_peft_model": Change("gone: it is seen from `model` and `peft_config`"),
    "kl_coef": Change(
        "beta",
        "The penalty stands with the score at the last token, which gives the same return with gamma=1; "
        "kl_placement='token' spreads it over the tokens as before. With a kl_target a controller moves it.",
    ),
    "kl_penalty": Change(
        "kl_estimator",
        "'kl' is 'k1' and 'mse' is 'k2'. 'abs' is gone, as it is no KL, and 'full', as it needs the logits of the whole "
        "vocabulary.",
    ),
    "local_batch_size": Change("gone: it follows from generation_batch_size", _FOLLOWS),
    "local_mini_batch_size": Change("gone: it follows from per_device_train_batch_size", _FOLLOWS),
    "local_rollout_forward_batch_size": Change(
        "per_device_train_batch_size", "Forwards of a rollout without gradients take as many sequences at a time."
    ),
    "log_with": Change("report_to", "A list of any trackers of transformers."),
    "micro_batch_size": Change("gone: it follows from per_device_train_batch_size", _FOLLOWS),
    "mini_batch_size": Change("per_device_train_batch_size and gradient_accumulation_steps", _ROLLOUT),
    "model_adapter_name": Change("gone: pass a PeftModel as `model`"),
    "model_name": Change("the `model` argument of PPOTrainer", _TRACKING),
    "num_mini_batches": Change(
        "steps_per_generation / gradient_accumulation_steps",
        "For the rollout that gradient_accumulation_steps=16 with num_mini_batches=4 gave, set steps_per_generation=16 and "
        "gradient_accumulation_steps=4.",
    ),
    "num_ppo_epochs": Change("num_iterations", "The same default, 4."),
    "num_sample_generations": Change("log_completions", "A table of completions at every log line, not ten in a run."),
    "num_total_batches": Change("gone: it follows from max_steps", _FOLLOWS),
    "optimize_cuda_cache": Change(GONE, "The cache needs no emptying: forwards are chunked."),
    "optimize_device_cache": Change(GONE, "The cache needs no emptying: forwards are chunked."),
    "ppo_epochs": Change("num_iterations", "The same default, 4."),
    "project_kwargs": Change(GONE, "Folders of trackers are set by their environment variables."),
    "push_to_hub_if_best_kwargs": Change(
        "push_to_hub, with load_best_model_at_end and metric_for_best_model", "Measured on held-out prompts."
    ),
    "query_dataset": Change("the `train_dataset` argument of PPOTrainer", _TRACKING),
    "ratio_threshold": Change(
        "gone: watch policy/ratio_max",
        "diagnostics='act' leaves out steps whose loss or gradient is not finite; a large ratio is clipped, and its cause "
        "named.",
    ),
    "ref_adapter_name": Change("gone: the base, or the initial adapter, is the reference"),
    "response_length": Change("max_completion_length", "The default is 512 tokens, not 53."),
    "reward_model": Change("the `reward_funcs` argument of PPOTrainer", _TRACKING),
    "reward_model_path": Change(
        "the `reward_funcs` argument of PPOTrainer",
        "In a recipe or on the command line it is reward_model. The critic starts from it by itself.",
    ),
    "rollout_batch_size": Change("generation_batch_size", _ROLLOUT),
    "sft_model_path": Change(
        "the `model` argument of PPOTrainer", "In a recipe or on the command line it is model_name_or_path."
    ),
    "steps": Change("max_steps", "It counted sequences, and max_steps counts optimizer steps."),
    "stop_token": Change(
        "the model's generation_config.eos_token_id",
        "A completion ends at any of its EOS tokens, also while it is generated.",
    ),
    "stop_token_id": Change(
        "the model's generation_config.eos_token_id",
        "A completion ends at any of its EOS tokens, also while it is generated.",
    ),
    "target": Change("kl_target (with kl_unit)", "It was in nats per completion: kl_unit='sequence'."),
    "target_kl": Change("gone (it ended the epochs by kl/update; kl_target is the distance from the reference)"),
    "task_name": Change("run_name", _TRACKING),
    "total_episodes": Change(
        "max_steps or num_train_epochs",
        "It counted sequences. max_steps = total_episodes / generation_batch_size * num_iterations * steps_per_generation "
        "/ gradient_accumulation_steps.",
    ),
    "tracker_kwargs": Change(GONE, "Trackers read their environment variables."),
    "tracker_project_name": Change("project"),
    "use_score_norm": Change("normalize_scores", _SCORE_UNITS),
    "use_score_scaling": Change("normalize_scores", _SCORE_UNITS),
    "whiten_rewards": Change(
        "gone: normalize_scores centres the scores, normalize_advantages the advantages",
        "Whitening per-token rewards changes the weight of the KL penalty from rollout to rollout.",
    ),
    "world_size": Change("gone: the launcher sets it", _FOLLOWS),
}
"""Setting of TRL's PPOConfig."""

OLD_ARGUMENTS = {
    "config": Change("args"),
    "data_collator": Change("gone: the prompts are texts or conversations, not token ids"),
    "dataset": Change("train_dataset", "With a column `prompt` instead of `input_ids`."),
    "lr_scheduler": Change("lr_scheduler_type in PPOConfig", "A schedule made outside does not know the critic."),
    "num_shared_layers": Change("gone: with peft_config the whole base is shared"),
    "optimizer": Change("optimizers, as (optimizer, None)", "The critic is added to it."),
    "policy": Change("model"),
    "ref_policy": Change("ref_model", "Leave it out: the initial policy is the reference."),
    "reward_model": Change(
        "reward_funcs",
        "An id, a folder, a model, a Python function, or a list of them. It may have another tokenizer than the policy.",
    ),
    "tokenizer": Change("processing_class", "May be left out: the one saved with the model is used."),
    "training_data_collator": Change("gone: rollouts are batched by the trainer"),
    "value_model": Change(
        "critic_model, with critic='model' in PPOConfig",
        "Leave it out: without PEFT the critic starts as the reward model by itself, and with PEFT it is a second adapter.",
    ),
}
"""Argument of TRL's PPOTrainer that has another name."""

KEPT_ARGUMENTS = {
    "model": Change("model", "A causal language model, or its id or folder, without a value head."),
    "ref_model": Change(
        "ref_model",
        "Leave it out: the initial policy is the reference; with PEFT the base without its adapter, at no memory.",
    ),
    "train_dataset": Change(
        "train_dataset",
        "With a column `prompt` (text or conversations); token ids are refused. Other columns reach the rewards.",
    ),
}
"""Argument of TRL's PPOTrainer that kept its name and not its meaning."""

_PLAIN_MODEL = "The trainer adds the critic, in a forward that DDP, ZeRO and FSDP know."
_FUNCTIONAL = "With masks that are True for real tokens, and means over those alone."

CLASSES = {
    "AdaptiveKLController": Change("rlhf_ext.make_kl_controller", "PPOConfig makes it: kl_controller='ziegler'."),
    "AutoModelForCausalLMWithValueHead": Change(
        "gone: pass a causal language model, its id or its folder", _PLAIN_MODEL
    ),
    "AutoModelForSeq2SeqLMWithValueHead": Change("gone: encoder-decoder models are not supported", _PLAIN_MODEL),
    "FixedKLController": Change("rlhf_ext.make_kl_controller", "PPOConfig makes it: kl_controller='fixed'."),
    "LengthSampler": Change(
        "gone: max_completion_length is one number", "Completions end with EOS; see missing_eos_penalty."
    ),
    "PPOConfig": Change("rlhf_ext.PPOConfig"),
    "PPOTrainer": Change("rlhf_ext.PPOTrainer"),
    "PPOv2Config": Change("rlhf_ext.PPOConfig"),
    "PPOv2Trainer": Change("rlhf_ext.PPOTrainer"),
    "PreTrainedModelWrapper": Change("gone: pass a causal language model, its id or its folder", _PLAIN_MODEL),
    "SIMPLE_CHAT_TEMPLATE": Change("gone: the template of the tokenizer is used", "Text prompts need none."),
    "create_reference_model": Change("gone: leave ref_model out", "The initial policy is the reference."),
    "logprobs_from_logits": Change(
        "gone: the trainer's forward gives them, without the logits of the whole vocabulary"
    ),
    "masked_mean": Change("rlhf_ext.functional.masked_mean", _FUNCTIONAL),
    "masked_var": Change("rlhf_ext.functional.masked_var", _FUNCTIONAL),
    "masked_whiten": Change("rlhf_ext.functional.masked_whiten", _FUNCTIONAL),
    "respond_to_batch": Change("gone: the trainer generates"),
}
"""Class or function of TRL's PPO."""

METHODS = {
    "batched_forward_pass": Change("gone: the trainer's own"),
    "compute_advantages": Change("rlhf_ext.functional.gae"),
    "compute_rewards": Change("rlhf_ext.functional.shape_rewards"),
    "config": Change("args"),
    "create_model_card": Change("create_model_card", "Written by save_model and push_to_hub."),
    "current_device": Change("accelerator.device"),
    "dataloader": Change("gone: train() draws the prompts", "The loop over it is `trainer.train()`."),
    "generate": Change(
        "gone: train() samples the completions",
        "Their length and temperature are max_completion_length and temperature in PPOConfig; top_k, top_p and min_length "
        "are refused, because PPO would score another distribution than it samples from.",
    ),
    "generate_completions": Change("evaluate(), or log_completions=True", "On held-out prompts of `eval_dataset`."),
    "kl_ctl": Change("kl_controller"),
    "log_stats": Change("gone: report_to and log_completions in PPOConfig"),
    "loss": Change("rlhf_ext.functional.policy_loss and value_loss"),
    "policy_model": Change("model"),
    "prepare_dataloader": Change("gone: train() draws the prompts"),
    "save_pretrained": Change("save_model", "It writes the policy, and the critic to the folder `critic` beside it."),
    "step": Change(
        "gone: train(), with the scores from a reward function",
        "Write what scored a completion as `def score(prompts, completions, **columns): return [...]` and pass it as "
        "reward_funcs; train() then samples, scores and updates.",
    ),
    "tokenizer": Change("processing_class"),
    "value_model": Change("critic"),
}
"""Method or attribute of TRL's PPOTrainer."""

_PER_TOKEN = "A mean over completion tokens; it counted padding too."
METRICS = {
    "env/reward_mean": Change("objective/score"),
    "env/reward_std": Change("objective/score_std"),
    "episode": Change("gone: num_tokens counts tokens, step optimizer steps"),
    "eps": Change("gone: step_time is the time of an optimizer step"),
    "loss/policy_avg": Change("policy/loss"),
    "loss/value_avg": Change("value/loss"),
    "lr": Change("learning_rate"),
    "objective/entropy": Change("policy/entropy", "Nats per token; it was a sum of -log-probabilities."),
    "objective/kl": Change("kl/ref", "Nats per completion as before, with its standard error in kl/ref_se."),
    "objective/kl_coef": Change("kl/beta"),
    "objective/non_score_reward": Change("gone: objective/reward - objective/score"),
    "objective/rlhf_reward": Change("objective/reward"),
    "objective/scores": Change("objective/score"),
    "policy/approxkl_avg": Change("kl/update", f"The estimator k3, not half the squared log ratio. {_PER_TOKEN}"),
    "policy/clipfrac_avg": Change("policy/clip_fraction", _PER_TOKEN),
    "policy/entropy_avg": Change("policy/entropy", _PER_TOKEN),
    "ppo/learning_rate": Change("learning_rate"),
    "ppo/loss/policy": Change("policy/loss"),
    "ppo/loss/total": Change("gone: policy/loss + vf_coef * value/loss"),
    "ppo/loss/value": Change("value/loss"),
    "ppo/mean_non_score_reward": Change("gone: objective/reward - objective/score", "It was a mean per token."),
    "ppo/mean_scores": Change("objective/score"),
    "ppo/policy/approxkl": Change("kl/update", "The estimator k3, not half the squared log ratio."),
    "ppo/policy/clipfrac": Change("policy/clip_fraction"),
    "ppo/policy/entropy": Change("policy/entropy"),
    "ppo/policy/policykl": Change("kl/update"),
    "ppo/policy/ratio": Change("policy/ratio_max"),
    "ppo/returns/var": Change("value/return_variance"),
    "ppo/std_scores": Change("objective/score_std"),
    "ppo/val/clipfrac": Change("value/clip_fraction"),
    "ppo/val/error": Change("value/loss", "Twice the value loss without clipping."),
    "ppo/val/var_explained": Change(
        "value/explained_variance", "Of the rollout's values, before they are trained on it."
    ),
    "tokens/responses_len_mean": Change("completions/mean_length"),
    "val/clipfrac_avg": Change("value/clip_fraction", _PER_TOKEN),
    "val/num_eos_tokens": Change("completions/eos_fraction", "A share of the completions."),
    "val/ratio": Change("policy/ratio_max", "The largest; the mean hid it."),
    "val/ratio_var": Change("policy/ratio_max", "The largest; the mean hid it."),
}
"""Key of TRL's PPO logs."""


def explain_old_names(names: list[str], places: dict[str, Change] = OLD_NAMES) -> str | None:
    """
    Say where old names are now.

    Args:
        names (`list[str]`):
            Names that are not known here.
        places (`dict[str, Change]`, *optional*):
            Table to look in; by default that of the settings.

    Returns:
        `str`: A sentence on each name of TRL's old PPO among `names`, or `None` if there is none.
    """
    known = {name: places[name].new for name in names if name in places}
    lines = [f"`{name}` is {'' if new.startswith(GONE) else 'now '}{new}" for name, new in known.items()]
    return "Names of TRL's old PPO: " + "; ".join(lines) + "." if lines else None
