"""Reward models and Python functions, as the reward functions that TRL's trainers call."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.normalization import read_score_normalization
from ..models.scoring import RewardModelScorer, check_reward_tokenizer, load_reward_model
from .checks import load_tokenizer
from .ppo_config import PPOConfig

RewardFunc: TypeAlias = str | PreTrainedModel | Callable[..., list[float | None]]

# Loading arguments that are about the machine or the account. Others, such as `revision` and `subfolder`, name something
# in the policy's own repository.
_SHARED_LOADING_ARGUMENTS = (
    "attn_implementation",
    "cache_dir",
    "device_map",
    "dtype",
    "local_files_only",
    "token",
    "torch_dtype",
    "trust_remote_code",
)


def as_reward_function(
    function: RewardFunc, tokenizer: PreTrainedTokenizerBase | None, policy_tokenizer: Any, args: PPOConfig
) -> Callable[..., list[float | None]]:
    """
    A Python function as it is; a reward model, loaded where it is named, behind a [`RewardModelScorer`].

    A reward model is logged under the whole id or folder that it was given by, because the last names of folders repeat
    (`run1/reward`, `run2/reward`). Of the policy's `model_init_kwargs` it gets those that are not about the policy's
    repository.
    """
    if not isinstance(function, str | nn.Module):
        return function
    path = function if isinstance(function, str) else str(getattr(function.config, "_name_or_path", ""))
    name = os.path.normpath(path).strip("/") if path else "reward_model"
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(function, args.trust_remote_code)
    check_reward_tokenizer(tokenizer, path or name)
    model = load_reward_model(function, **_loading_arguments(args)) if isinstance(function, str) else function
    scorer = RewardModelScorer(
        model,
        tokenizer,
        policy_tokenizer,
        name=name,
        batch_size=args.per_device_eval_batch_size,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    if isinstance(function, str):
        scorer.normalization = read_score_normalization(function)
    return scorer


def _loading_arguments(args: PPOConfig) -> dict[str, Any]:
    given = args.model_init_kwargs or {}
    shared = {name: given[name] for name in _SHARED_LOADING_ARGUMENTS if name in given}
    return {"trust_remote_code": args.trust_remote_code, **shared}


def score_affine(functions: list[Any], normalize: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each `(functions,)`, by which scores are centred and scaled."""
    pairs = [(getattr(f, "normalization", None) if normalize else None) or (0.0, 1.0) for f in functions]
    mean, std = zip(*pairs, strict=True)
    return torch.tensor(mean), torch.tensor(std)
