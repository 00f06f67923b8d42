"""`rlhf-ext check` where TRL is not installed: the settings as the recipe has them, with the defaults of `PPOConfig`."""

from typing import Any

from ..diagnostics import Finding, RunSettings, preflight
from ..diagnostics.run_config import settings_from
from ..migration import explain_old_names
from .recipe_file import read_settings_file
from .settings import PPO

DEFAULTS: dict[str, Any] = {
    "beta": None,
    "bf16": True,
    "critic_learning_rate": None,
    "critic_warmup_rollouts": 0,
    "entropy_coef": 0.0,
    "epsilon": 0.1,
    "fp16": False,
    "generation_batch_size": None,
    "generation_kwargs": None,
    "gradient_accumulation_steps": 1,
    "kl_controller": None,
    "kl_target": None,
    "kl_unit": None,
    "learning_rate": 3e-6,
    "max_completion_length": 512,
    "max_grad_norm": 1.0,
    "max_steps": -1,
    "min_p": None,
    "missing_eos_penalty": None,
    "model_init_kwargs": None,
    "num_iterations": 4,
    "per_device_train_batch_size": 8,
    "repetition_penalty": 1.0,
    "score_clip": None,
    "steps_per_generation": None,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "value_clip_range": 0.5,
}
"""Of the settings that the check reads; tests/cli/test_light_check.py holds them against `PPOConfig`."""
_SAMPLER = ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")
_NOTE = (
    "trl is not installed here: names and values were not checked as the run will check them, dropout and the length of "
    "the dataset not at all."
)


def preflight_of_text(recipe: str | None, overrides: list[str], num_gpus: int) -> tuple[list[Finding], list[str]]:
    """
    What cannot work in a recipe, or works otherwise than it looks, without the settings classes.

    Args:
        recipe (`str`, *optional*):
            Path of the recipe.
        overrides (`list[str]`):
            Settings on the command line.
        num_gpus (`int`):
            Processes of the run.

    Returns:
        `tuple`: the findings, and sentences on what could not be judged.

    Raises:
        ValueError: If the recipe is no YAML mapping, what is overridden has no name, a name is one of TRL's old PPO, or
            kl_target has no unit.
    """
    given = (read_settings_file(recipe) if recipe else {}) | _pairs(overrides)
    explanation = explain_old_names([name for name in given if name not in PPO.names()])
    if explanation:
        raise ValueError(explanation)
    settings = DEFAULTS | given
    if settings["kl_target"] is not None and settings["kl_unit"] not in ("sequence", "token"):
        raise ValueError(
            f"kl_target={settings['kl_target']} needs kl_unit='sequence' or 'token' (nats per completion or token)."
        )
    sampler = {name: settings.get(name) for name in _SAMPLER} | (settings["generation_kwargs"] or {})
    findings = preflight(
        RunSettings(**settings_from(_resolved(settings, num_gpus))),
        **{name: sampler[name] for name in _SAMPLER},
        temperature_is_scored=True,
        clips_gradient=True,
    )
    return findings, [_NOTE]


def _resolved(settings: dict[str, Any], num_gpus: int) -> dict[str, Any]:
    """The settings that follow from others, as `PPOConfig` makes them."""
    micro_batch = settings["per_device_train_batch_size"] * num_gpus
    accumulated, total = settings["gradient_accumulation_steps"], settings["generation_batch_size"]
    steps = settings["steps_per_generation"] or (total // micro_batch if total else accumulated)
    updates = max(1, steps // accumulated * settings["num_iterations"])
    has_target = settings["kl_target"] is not None
    dtype = (settings["model_init_kwargs"] or {}).get("dtype", settings.get("dtype"))
    resolved = {
        "generation_batch_size": total or micro_batch * steps,
        "planned_rollouts": max(1, settings["max_steps"] // updates) if settings["max_steps"] > 0 else None,
        "kl_controller": settings["kl_controller"] or ("log_pi" if has_target else "fixed"),
        "beta": settings["beta"] if settings["beta"] is not None else "auto" if has_target else 0.05,
    }
    if not (settings["bf16"] or settings["fp16"]) and dtype not in (None, "auto"):
        resolved["dtype"] = dtype
    return {name: value for name, value in settings.items() if name != "dtype"} | resolved


def _pairs(overrides: list[str]) -> dict[str, Any]:
    import yaml

    given: dict[str, list[Any]] = {}
    current: list[Any] | None = None
    for part in overrides:
        if part.startswith("--"):
            name, equals, value = part.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            current = given[name] = [yaml.safe_load(value)] if equals else []
        elif current is None:
            raise ValueError(f"not a setting: {part}. A recipe is given with --config, a value with its --name.")
        else:
            current.append(yaml.safe_load(part))
    # As argparse has it: a switch needs no value, a list has several.
    for name, values in given.items():
        if not values and not isinstance(DEFAULTS.get(name, True), bool):
            raise ValueError(f"--{name} needs a value.")
    return {name: values[0] if len(values) == 1 else values or True for name, values in given.items()}
