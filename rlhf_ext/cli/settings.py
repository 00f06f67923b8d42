"""
The settings of the programs in groups, for `--help`.

They are written out here because reading them from the settings classes would load torch; tests/cli/test_help.py holds
them against these.
"""

import textwrap
from dataclasses import dataclass

_WIDTH = 106


@dataclass(frozen=True)
class Settings:
    """
    Settings of a program, most used first.

    Args:
        purpose (`str`):
            What the program does.
        common (`dict[str, str]`):
            Setting -> what it is; those that most recipes have.
        groups (`dict[str, str]`):
            Title -> the other settings worth knowing, with blanks between.
    """

    purpose: str
    common: dict[str, str]
    groups: dict[str, str]

    def names(self) -> list[str]:
        """Every setting that is named."""
        return [*self.common, *" ".join(self.groups.values()).split()]

    def to_text(self) -> str:
        """The part of `--help` between usage and options."""
        lines = [*textwrap.wrap(self.purpose, _WIDTH), "", "most used:"]
        lines += [f"  {f'--{name}':<32}{text}" for name, text in self.common.items()]
        lines += ["", "more (--help-all says what each is):"]
        for title, names in self.groups.items():
            lines += textwrap.wrap(names, _WIDTH, initial_indent=f"  {title:<12}", subsequent_indent=" " * 14)
        return "\n".join(lines)


_DATA = "dataset_config dataset_train_split dataset_test_split dataset_streaming"
_MIXTURE = f"{_DATA} datasets"
_LORA = "lora_r lora_alpha lora_dropout lora_target_modules lora_modules_to_save load_in_4bit"
_MODEL = "dtype attn_implementation model_revision model_init_kwargs trust_remote_code"
_MEMORY = "gradient_accumulation_steps gradient_checkpointing bf16 fp16 optim use_cpu"
_SCHEDULE = "num_train_epochs lr_scheduler_type warmup_steps weight_decay max_grad_norm seed"
_SAVE = "save_steps save_total_limit logging_steps run_name push_to_hub hub_model_id"
_OUTPUT = {
    "output_dir": "folder of the model, the checkpoints and the logs",
    "resume_from_checkpoint": "true goes on from the newest checkpoint in output_dir",
}
_TRAINING = {
    "learning_rate": "peak learning rate; with LoRA about ten times that without",
    "per_device_train_batch_size": "sequences that a GPU holds in an update",
    "use_peft": "true trains a LoRA adapter instead of the whole model",
    "max_steps": "optimizer steps; or num_train_epochs",
}

SFT = Settings(
    purpose="Fine-tune a language model on texts or conversations: the policy that RLHF starts from.",
    common={
        "model_name_or_path": "model: Hub id or folder",
        "dataset_name": "Hub id, folder or .jsonl file: prompt and completion, messages, or text",
        **_OUTPUT,
        **_TRAINING,
        "max_length": "longest sequence, in tokens",
        "packing": "true puts several sequences in a row",
    },
    groups={
        "data": f"{_MIXTURE} dataset_text_field completion_only_loss assistant_only_loss packing_strategy",
        "tokens": "chat_template_path eos_token pad_token",
        "schedule": _SCHEDULE,
        "LoRA": _LORA,
        "model": _MODEL,
        "memory": f"{_MEMORY} padding_free activation_offloading",
        "evaluation": "eval_strategy eval_steps per_device_eval_batch_size",
        "saving": f"{_SAVE} report_to",
    },
)

REWARD = Settings(
    purpose="Train a reward model on preference pairs, and measure it on held-out ones.",
    common={
        "model_name_or_path": "model to start from: Hub id or folder",
        "dataset_name": "Hub id, folder or .jsonl file: chosen and rejected, and prompt or none",
        "dataset_test_split": "held-out pairs for the report card, such as train[90%:]",
        **_OUTPUT,
        **_TRAINING,
        "max_length": "longest sequence, in tokens",
    },
    groups={
        "data": "dataset_config dataset_train_split dataset_streaming datasets",
        "report card": "report_card calibration_bins reference_dataset_name reference_dataset_split",
        "loss": "center_rewards_coefficient disable_dropout",
        "tokens": "chat_template_path eos_token pad_token",
        "schedule": _SCHEDULE,
        "LoRA": _LORA,
        "model": _MODEL,
        "memory": f"{_MEMORY} activation_offloading",
        "evaluation": "eval_strategy eval_steps per_device_eval_batch_size",
        "saving": f"{_SAVE} report_to",
    },
)

PPO = Settings(
    purpose="Align a language model with PPO against a reward model.",
    common={
        "model_name_or_path": "policy: Hub id, folder, or adapter",
        "reward_model": "Hub id or folder; several with commas are added up",
        "dataset_name": "prompts: Hub id, folder or .jsonl file with the column prompt",
        **_OUTPUT,
        "kl_target": "distance from the reference to hold, in nats; needs kl_unit",
        "kl_unit": "unit of kl_target: sequence (per completion) or token",
        "max_completion_length": "longest completion, in tokens",
        **_TRAINING,
    },
    groups={
        "KL": "beta kl_controller kl_placement kl_estimator",
        "rollout": "steps_per_generation generation_batch_size num_generations temperature use_vllm",
        "scores": "missing_eos_penalty normalize_scores score_clip reward_weights",
        "PPO": "num_iterations epsilon gamma lam normalize_advantages entropy_coef adam_epsilon",
        "sampling": "allow_mismatched_sampling disable_dropout chat_template_kwargs",
        "critic": "critic critic_model critic_learning_rate critic_warmup_rollouts vf_coef value_clip_range",
        "watching": "diagnostics probe_every probe_size log_completions logging_steps report_to",
        "data": _DATA,
        "schedule": _SCHEDULE,
        "LoRA": f"{_LORA} merge",
        "model": _MODEL,
        "memory": _MEMORY,
        "saving": f"{_SAVE.replace('logging_steps ', '')} skip_damaged_checkpoints",
    },
)
