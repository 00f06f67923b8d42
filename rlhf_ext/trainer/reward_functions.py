"""Reward models and Python functions, as the reward functions that TRL's trainers call."""

import os
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..models.normalization import read_score_normalization
from ..models.reward_adapter import RewardAdapter, is_adapter_of
from ..models.roles import POLICY
from ..models.scoring import RewardModelScorer, check_reward_tokenizer, load_reward_model, same_tokens
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


def as_reward_functions(
    functions: RewardFunc | list[RewardFunc],
    tokenizers: Any,
    policy_tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    policy: Any,
    peft_config: PeftConfig | None,
) -> list[Callable[..., list[float | None]]]:
    """
    The reward functions of a run, each with its tokenizer.

    Raises:
        ValueError: If there is not one tokenizer for each function.
    """
    functions = functions if isinstance(functions, list) else [functions]
    tokenizers = tokenizers if isinstance(tokenizers, list) else [tokenizers] * len(functions)
    if len(tokenizers) != len(functions):
        raise ValueError(
            f"{len(tokenizers)} reward_processing_classes were passed for {len(functions)} reward_funcs; pass one for each "
            "(None for a Python function)."
        )
    if isinstance(policy, PeftModel):
        peft_config = policy.peft_config[POLICY]
    base = policy if isinstance(policy, str) else policy.config._name_or_path
    return [
        as_reward_function(function, tokenizer, policy_tokenizer, args, base, peft_config)
        for function, tokenizer in zip(functions, tokenizers, strict=True)
    ]


def as_reward_function(
    function: RewardFunc,
    tokenizer: PreTrainedTokenizerBase | None,
    policy_tokenizer: Any,
    args: PPOConfig,
    policy_base: str | None = None,
    policy_adapter: PeftConfig | None = None,
) -> Callable[..., list[float | None]]:
    """
    A Python function as it is; a reward model, loaded where it is named, behind a [`RewardModelScorer`].

    A reward model is logged under the whole id or folder that it was given by, because the last names of folders repeat
    (`run1/reward`, `run2/reward`). Of the policy's `model_init_kwargs` it gets those that are not about the policy's
    repository. One that was saved as an adapter of the policy's base (`policy_base`, where the policy is itself an
    adapter, `policy_adapter`) is not loaded but attached to that base by the trainer.
    """
    if not isinstance(function, str | nn.Module):
        return function
    path = function if isinstance(function, str) else str(getattr(function.config, "_name_or_path", ""))
    name = os.path.normpath(path).strip("/") if path else "reward_model"
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(function, args.trust_remote_code)
    check_reward_tokenizer(tokenizer, path or name)
    scorer = RewardModelScorer(
        _reward_model(function, tokenizer, policy_tokenizer, args, policy_base, policy_adapter),
        tokenizer,
        policy_tokenizer,
        name=name,
        batch_size=args.per_device_eval_batch_size,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    if isinstance(function, str):
        scorer.source = function
        scorer.normalization = read_score_normalization(function)
    return scorer


def _reward_model(
    function: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: Any,
    args: PPOConfig,
    policy_base: str | None,
    policy_adapter: PeftConfig | None,
) -> PreTrainedModel | RewardAdapter:
    if not isinstance(function, str):
        return function
    if policy_base and policy_adapter is not None and same_tokens(tokenizer, policy_tokenizer):
        revision = (args.model_init_kwargs or {}).get("revision")
        if is_adapter_of(function, policy_base, revision, policy_adapter):
            return RewardAdapter(function)
    return load_reward_model(function, **loading_arguments(args))


def loading_arguments(args: PPOConfig) -> dict[str, Any]:
    """Of the policy's `model_init_kwargs`, those that hold for every model of the run."""
    given = args.model_init_kwargs or {}
    shared = {name: given[name] for name in _SHARED_LOADING_ARGUMENTS if name in given}
    return {"trust_remote_code": args.trust_remote_code, **shared}


def score_affine(functions: list[Any], normalize: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each `(functions,)`, by which scores are centred and scaled."""
    pairs = [(getattr(f, "normalization", None) if normalize else None) or (0.0, 1.0) for f in functions]
    mean, std = zip(*pairs, strict=True)
    return torch.tensor(mean), torch.tensor(std)
