"""Settings of a run, from the configuration that a tracker kept."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .formats.source import number
from .record import RunSettings

# Names in the configurations of TRL (both eras of its PPO, GRPO) and of rlhf_ext, where they are not ours.
_OTHER_NAMES = {
    "num_epochs": ("num_iterations", "num_ppo_epochs", "ppo_epochs"),
    "epsilon": ("cliprange",),
    "value_clip_range": ("cliprange_value",),
    "beta": ("kl_coef", "init_kl_coef"),
    "max_completion_length": ("response_length",),
    "rollout_size": ("generation_batch_size",),
}
# What a setting of PPOConfig, or of the Trainer, means where it is not set.
_UNSET = {"value_clip_range": math.inf, "score_clip": math.inf, "missing_eos_penalty": 0.0, "max_grad_norm": 0.0}


def settings_from(config: Mapping[str, Any]) -> dict[str, Any]:
    """
    Fields of [`RunSettings`] that a configuration gives.

    Args:
        config (`dict[str, Any]`): Flat, under the names of TRL, of `PPOConfig` or of [`RunSettings`].
    """
    found: dict[str, Any] = {}
    for field in fields(RunSettings):
        for name in (field.name, *_OTHER_NAMES.get(field.name, ())):
            value = _value(config.get(name), str(field.type))
            if value is not None:
                found.setdefault(field.name, value)
    if "num_iterations" in config:
        found |= {name: meaning for name, meaning in _UNSET.items() if name in config and config[name] is None}
    if "critic_learning_rate" in config and "learning_rate" in found:
        found.setdefault("critic_learning_rate", found["learning_rate"])
    if "kl_unit" not in found:
        found.pop("kl_target", None)
    if "dtype" not in found and {"bf16", "fp16"} <= set(config):
        found["dtype"] = "bfloat16" if config["bf16"] else "float16" if config["fp16"] else "float32"
    return found


def _value(value: Any, kind: str) -> Any:
    """The value if it is of the type that the field has."""
    if kind == "str | None":
        return value if isinstance(value, str) else None
    parsed = number(value)
    if parsed is None or math.isnan(parsed):
        return None
    return int(parsed) if kind == "int | None" and math.isfinite(parsed) else parsed
