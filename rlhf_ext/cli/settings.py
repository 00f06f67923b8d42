"""
The settings of the programs in groups, for `--help`.

They are written out here because reading them from the settings classes would load torch; tests/cli/test_help.py holds
them against these.
"""

import difflib
import textwrap
from collections.abc import Callable, Collection
from dataclasses import dataclass

# The narrowest terminal: the settings stand in columns, which are not wrapped again.
_WIDTH = 80


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
            Title -> other settings worth knowing, with blanks between.
        rest (`str`):
            More of them, which are completed and stand in `--help-all` alone: `--help` has to fit a screen.
    """

    purpose: str
    common: dict[str, str]
    groups: dict[str, str]
    rest: str

    def names(self) -> list[str]:
        """Every setting that is named."""
        return [*self.common, *" ".join([*self.groups.values(), self.rest]).split()]

    def to_text(self) -> str:
        """The part of `--help` between usage and options."""
        lines = [self.purpose, "", "most used:"]
        lines += [f"  {f'--{name}':<30} {text}" for name, text in self.common.items()]
        lines += ["", "more (--help-all has every setting, and says what it is):"]
        for title, names in self.groups.items():
            lines += textwrap.wrap(names, _WIDTH, initial_indent=f"  {title:<8} ", subsequent_indent=" " * 11)
        return "\n".join(lines)


_OUTPUT = {
    "output_dir": "folder of the model, checkpoints and logs",
    "resume_from_checkpoint": "true: from the newest checkpoint in output_dir",
}
_TRAINING = {
    "learning_rate": "peak; with LoRA about ten times that without",
    "per_device_train_batch_size": "sequences that a GPU holds in an update",
    "use_peft": "true trains a LoRA adapter, not the whole model",
    "max_steps": "optimizer steps; or num_train_epochs",
}
_SCHEDULE = "num_train_epochs lr_scheduler_type warmup_steps max_grad_norm seed"
_LORA = "lora_r lora_alpha lora_target_modules load_in_4bit"
_MODEL = "dtype attn_implementation trust_remote_code"
_MEMORY = "gradient_accumulation_steps gradient_checkpointing bf16 use_cpu"
_HUB = "push_to_hub hub_model_id"
_TOKENS = "chat_template_path eos_token pad_token"
_EVALUATION = "eval_strategy eval_steps per_device_eval_batch_size"
_REST = (
    "dataset_config dataset_streaming fp16 lora_dropout lora_modules_to_save model_init_kwargs model_revision optim "
    "run_name save_total_limit weight_decay"
)

SFT = Settings(
    purpose="Fine-tune a language model on texts or conversations: RLHF starts from it.",
    common={
        "model_name_or_path": "model: Hub id or folder",
        "dataset_name": "Hub id, folder or .jsonl, with text or messages",
        **_OUTPUT,
        **_TRAINING,
        "max_length": "longest sequence, in tokens",
        "packing": "true puts several sequences in a row",
    },
    groups={
        "data": "dataset_train_split dataset_test_split datasets dataset_text_field completion_only_loss "
        "assistant_only_loss",
        "tokens": _TOKENS,
        "schedule": _SCHEDULE,
        "LoRA": _LORA,
        "model": _MODEL,
        "memory": f"{_MEMORY} padding_free activation_offloading",
        "testing": _EVALUATION,
        "saving": f"save_steps logging_steps report_to {_HUB}",
    },
    rest=f"{_REST} packing_strategy",
)

REWARD = Settings(
    purpose="Train a reward model on preference pairs, and measure it on held-out ones.",
    common={
        "model_name_or_path": "model to start from: Hub id or folder",
        "dataset_name": "Hub id, folder or .jsonl: chosen and rejected",
        "dataset_test_split": "pairs for the report card, such as train[90%:]",
        **_OUTPUT,
        **_TRAINING,
        "max_length": "longest sequence, in tokens",
    },
    groups={
        "data": "dataset_train_split datasets",
        "card": "report_card calibration_bins reference_dataset_name reference_dataset_split",
        "loss": "center_rewards_coefficient disable_dropout",
        "tokens": _TOKENS,
        "schedule": _SCHEDULE,
        "LoRA": _LORA,
        "model": _MODEL,
        "memory": f"{_MEMORY} activation_offloading",
        "testing": _EVALUATION,
        "saving": f"save_steps logging_steps report_to {_HUB}",
    },
    rest=_REST,
)

PPO = Settings(
    purpose="Align a language model with PPO against a reward model.",
    common={
        "model_name_or_path": "policy: Hub id, folder, or adapter",
        "reward_model": "Hub id or folder; several with commas add up",
        "dataset_name": "Hub id, folder or .jsonl, with a column prompt",
        **_OUTPUT,
        "kl_target": "distance from the reference to hold, in nats",
        "kl_unit": "of kl_target: sequence (completion) or token",
        "max_completion_length": "longest completion, in tokens",
        **_TRAINING,
    },
    groups={
        "KL": "beta kl_controller kl_placement kl_estimator",
        "score": "missing_eos_penalty normalize_scores score_clip reward_weights",
        "rollout": "steps_per_generation generation_batch_size num_generations temperature allow_mismatched_sampling "
        "chat_template_kwargs use_vllm",
        "PPO": "num_iterations epsilon gamma lam normalize_advantages entropy_coef",
        "critic": "critic critic_model critic_learning_rate critic_warmup_rollouts vf_coef value_clip_range",
        "watching": "diagnostics probe_every probe_size log_completions logging_steps",
        "training": f"dataset_train_split dataset_test_split {_SCHEDULE} adam_epsilon",
        "LoRA": f"{_LORA} merge",
        "model": f"{_MODEL} disable_dropout {_MEMORY}",
        "saving": f"save_steps report_to {_HUB}",
    },
    rest=f"{_REST} skip_damaged_checkpoints",
)

PROGRAMS = {"sft": SFT, "reward": REWARD, "ppo": PPO}
"""The training programs."""


def programs_with(setting: str) -> list[str]:
    """The training programs whose `--help` names a setting."""
    return [program for program, settings in PROGRAMS.items() if setting in settings.names()]


def explain_unknown(
    names: list[str], known: Collection[str], explain_names: Callable[[list[str]], str | None] | None = None
) -> str:
    """
    What to say of names that are no settings: which program has one, and which was probably meant.

    Args:
        names (`list[str]`):
            The names.
        known (collection of `str`):
            Settings of the program.
        explain_names (`Callable[[list[str]], str | None]`, *optional*):
            Gives the message for names that it knows more about, such as [`explain_old_names`].
    """
    old = [name for name in names if explain_names is not None and explain_names([name])]
    others = ", ".join(_with_suggestion(name, known) for name in names if name not in old)
    sentences = [f"unknown settings: {others}. Correct or remove them"] if others else []
    if explain_names is not None and old:
        sentences.append(explain_names(old) or "")
    return ". ".join(sentences)


def _with_suggestion(name: str, known: Collection[str]) -> str:
    programs, similar = programs_with(name), difflib.get_close_matches(name, known, n=2)
    if programs:
        near = f"; near it here: {', '.join(similar)}" if similar else ""
        return f"{name} (a setting of rlhf-ext {', '.join(programs)}{near})"
    return f"{name} (did you mean {similar[0]}?)" if similar else name
