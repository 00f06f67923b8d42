"""What a run needs around it, looked for before any model is loaded: a place to write, packages, steps enough."""

import importlib.util
import os
from typing import Any

from transformers.integrations import INTEGRATION_TO_CALLBACK

# Trackers whose packages are named as they are.
_TRACKERS = ("comet_ml", "mlflow", "trackio", "wandb")


def check_surroundings(args: Any, eval_dataset: Any) -> None:
    """
    Refuse a run that has nowhere to write or lacks a package, which otherwise shows once the models are loaded or later.

    Args:
        args ([`PPOConfig`]):
            Settings of the run.
        eval_dataset:
            Held-out prompts.

    Raises:
        OSError: If `output_dir` cannot be written.
        ValueError: For an unknown tracker, a run in which the policy would never move, or one that is to be evaluated on
            nothing.
        ImportError: If a package is not installed.
    """
    _check_output_dir(args.output_dir)
    for name in args.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise ValueError(
                f"report_to={name!r} is no tracker. One or more of: {', '.join(INTEGRATION_TO_CALLBACK)}."
            )
        if name in _TRACKERS and importlib.util.find_spec(name) is None:
            raise ImportError(
                f"report_to={name!r}: the package is not installed. `pip install {name}`, or take it out."
            )
    if getattr(args, "use_vllm", False) and importlib.util.find_spec("vllm") is None:
        raise ImportError("use_vllm=True: vLLM is not installed. `pip install trl[vllm]`, or set use_vllm=False.")
    _check_length(args, eval_dataset)


def _check_output_dir(folder: str) -> None:
    place = os.path.abspath(folder)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    if not os.path.isdir(place):
        raise NotADirectoryError(f"output_dir={folder!r}: {place!r} is a file. Choose another folder.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output_dir={folder!r}: {place!r} may not be written by this user. Choose another folder, or change its owner."
        )


def _check_length(args: Any, eval_dataset: Any) -> None:
    warmup = args.critic_warmup_rollouts * args.updates_per_rollout
    if 0 < args.max_steps <= warmup:
        raise ValueError(
            f"critic_warmup_rollouts={args.critic_warmup_rollouts} takes {warmup} optimizer steps, but the run has "
            f"max_steps={args.max_steps}: the policy would never move. Lower critic_warmup_rollouts, or raise max_steps."
        )
    if args.eval_strategy != "no" and eval_dataset is None:
        raise ValueError(
            f"eval_strategy={args.eval_strategy.value!r} evaluates on held-out prompts, and there are none. Pass them as "
            "`eval_dataset` (in a recipe dataset_test_split), or set eval_strategy='no'."
        )
