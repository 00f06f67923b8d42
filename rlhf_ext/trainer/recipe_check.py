"""From the settings of `trainers/ppo.py` to what is wrong with them, without loading a model."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, PretrainedConfig
from trl import ModelConfig, get_peft_config

from ..diagnostics import Finding
from .data import load_data
from .preflight import preflight_of
from .recipe_plan import read_recipe


def preflight_of_recipe(
    script_arguments: type[Any], arguments: list[str], num_gpus: int
) -> tuple[list[Finding], list[str]]:
    """
    [`preflight_of`] of a recipe of `trainers/ppo.py`, and of what overrides it.

    Args:
        script_arguments (`type`):
            The program's own settings class.
        arguments (`list[str]`):
            Its command line.
        num_gpus (`int`):
            Processes of the run, which no recipe says.

    Returns:
        `tuple`: the findings, and sentences on what could not be judged.

    Raises:
        OSError, ValueError: For a dataset that is on this machine and cannot be read. What the recipe's parser refuses
            ends the program.
    """
    script_args, args, model_args = read_recipe(script_arguments, arguments, num_gpus, "rlhf-ext check")
    args.model_init_kwargs = {"dtype": model_args.dtype} | (args.model_init_kwargs or {})
    notes: list[str] = []
    prompts = None
    if args.max_steps <= 0:
        prompts = _rows(script_args)
        if prompts is None:
            notes.append(
                f"The length of the run is not known: max_steps is not set, and dataset_name="
                f"{script_args.dataset_name!r} is not on this machine."
            )
    model_config = None
    if not args.disable_dropout:
        model_config = _local_config(model_args, args.trust_remote_code)
        if model_config is None:
            notes.append(
                f"The dropout of {model_args.model_name_or_path!r} is not known: its config is not on this machine."
            )
    return preflight_of(args, prompts=prompts, model_config=model_config, adapter=get_peft_config(model_args)), notes


def _rows(script_args: Any) -> int | None:
    name = script_args.dataset_name
    if not name or script_args.dataset_streaming or not Path(name).expanduser().exists():
        return None
    return len(load_data(name, script_args.dataset_train_split, script_args.dataset_config))


def _local_config(model_args: ModelConfig, trust_remote_code: bool) -> PretrainedConfig | None:
    """Of the policy; nothing is fetched for a check."""
    if not model_args.model_name_or_path:
        return None
    try:
        return AutoConfig.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            local_files_only=True,
            trust_remote_code=trust_remote_code,
        )
    except (OSError, ValueError):
        return None
