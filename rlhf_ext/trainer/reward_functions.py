"""Reward models and Python functions, as the reward functions that TRL's trainers call."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain, count
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.utils import is_async_callable

from ..models.normalization import read_score_normalization
from ..models.reward_adapter import RewardAdapter, is_adapter_of
from ..models.scoring import (
    RewardModelScorer,
    check_reward_tokenizer,
    hub_arguments,
    load_reward_model,
    same_tokens,
)
from .checks import load_tokenizer
from .policy import PolicySource
from .ppo_config import PPOConfig
from .repositories import check_repository
from .reward_errors import await_or_explain, call_or_explain, shown

RewardFunc: TypeAlias = str | PreTrainedModel | Callable[..., list[float | None]]

# Loading arguments that are about the machine, which the reward models share beside those about the account. Others, such
# as `revision` and `subfolder`, name something in the policy's own repository.
_SHARED_LOADING_ARGUMENTS = (
    "attn_implementation",
    "device_map",
    "dtype",
    "torch_dtype",
    "trust_remote_code",
)


def as_reward_functions(
    reward_funcs: RewardFunc | list[RewardFunc],
    tokenizers: Any,
    policy_tokenizer: Any,
    args: PPOConfig,
    policy: PolicySource,
) -> list[Callable[..., list[float | None]]]:
    """
    Everything that may be given as `reward_funcs`, as a list of callables; see [`as_reward_function`].

    Args:
        reward_funcs (`str`, [`~transformers.PreTrainedModel`], callable, or a list of them):
            Reward models and Python functions.
        tokenizers (tokenizer, list of them or `None`):
            Tokenizers of the reward models; `None` for a Python function and for the one saved with a reward model.
        policy_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        args ([`PPOConfig`]):
            Settings.
        policy ([`PolicySource`]):
            The policy's base, on which reward models are attached where they and the policy are adapters of it.

    Raises:
        TypeError: For what is neither a reward model nor a function.
        ValueError: For an empty list, or lists of tokenizers or weights of another length. Both before a model is loaded.
    """
    functions = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
    tokenizers = tokenizers if isinstance(tokenizers, list) else [tokenizers] * len(functions)
    if not functions:
        raise ValueError("`reward_funcs` is an empty list. Pass at least one reward model or Python function.")
    for function in functions:
        if not isinstance(function, str | nn.Module) and not callable(function):
            raise TypeError(
                f"`reward_funcs` holds {function!r}, which is neither a reward model (Hub id, folder, model) nor a "
                "function."
            )
    for name, values in (("reward_processing_classes", tokenizers), ("reward_weights", args.reward_weights)):
        if values is not None and len(values) != len(functions):
            raise ValueError(
                f"{len(values)} {name} were passed for {len(functions)} reward_funcs ({values}); pass one for each."
            )
    return [
        as_reward_function(f, t, policy_tokenizer, args, policy) for f, t in zip(functions, tokenizers, strict=True)
    ]


def unique_names(names: list[str]) -> list[str]:
    """The names under which reward functions are logged; a name that came before gets a number."""
    unique: list[str] = []
    for name in names:
        candidates = chain([name], (f"{name}_{number}" for number in count(2)))
        unique.append(next(candidate for candidate in candidates if candidate not in unique))
    return unique


def as_reward_function(
    function: RewardFunc,
    tokenizer: PreTrainedTokenizerBase | None,
    policy_tokenizer: Any,
    args: PPOConfig,
    policy: PolicySource | None = None,
) -> Callable[..., list[float | None]]:
    """
    A Python function as it is; a reward model, loaded where it is named, behind a [`RewardModelScorer`].

    A reward model is logged under the whole id or folder that it was given by, because the last names of folders repeat
    (`run1/reward`, `run2/reward`). Of the policy's `model_init_kwargs` it gets those that are not about the policy's
    repository. One that was saved as an adapter of the policy's base, where the policy is itself an adapter and is given by
    its id or folder, is not loaded but attached to that base by the trainer. (An instance may have been trained further
    under its old name.)
    """
    if not isinstance(function, str | nn.Module):
        return function
    path = function if isinstance(function, str) else str(getattr(function.config, "_name_or_path", ""))
    name = os.path.normpath(path).strip("/") if path else "reward_model"
    hub = hub_arguments(args.model_init_kwargs)
    if isinstance(function, str):
        check_repository("reward model", function, args)
    tokenizer = tokenizer if tokenizer is not None else load_tokenizer(function, args.trust_remote_code, **hub)
    check_reward_tokenizer(tokenizer, path or name)
    scorer = RewardModelScorer(
        _reward_model(function, tokenizer, policy_tokenizer, args, policy),
        tokenizer,
        policy_tokenizer,
        name=name,
        batch_size=args.per_device_eval_batch_size,
        chat_template_kwargs=args.chat_template_kwargs,
    )
    if isinstance(function, str):
        scorer.source = function
        scorer.normalization = read_score_normalization(function, **hub)
    return scorer


def _reward_model(
    function: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    policy_tokenizer: Any,
    args: PPOConfig,
    policy: PolicySource | None,
) -> PreTrainedModel | RewardAdapter:
    if not isinstance(function, str):
        return function
    if (
        policy is not None
        and policy.adapter is not None
        and not policy.is_instance
        and same_tokens(tokenizer, policy_tokenizer)
    ):
        hub = hub_arguments(args.model_init_kwargs)
        if is_adapter_of(function, policy.base, policy.revision, policy.adapter, **hub):
            return RewardAdapter(function, **hub)
    return load_reward_model(function, **loading_arguments(args))


class ScoreCheck:
    """
    Looks at what reward functions return, for as long as one rollout is scored: names the sample where one raises, and
    counts what is not a number. TRL takes NaN for `None`, by which a function abstains, while it is mostly an error in the
    function.

    Attributes:
        nan_count (`int`): NaN so far.
    """

    def __init__(self) -> None:
        self.nan_count = 0

    def wrap(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, checked; a reward model as it is."""
        if isinstance(function, RewardModelScorer):
            return function
        if is_async_callable(function):

            async def awaited(**inputs: Any) -> Any:
                return self._checked(await await_or_explain(function, name, inputs), name)

            return awaited

        def called(**inputs: Any) -> Any:
            return self._checked(call_or_explain(function, name, inputs), name)

        return called

    def _checked(self, scores: Any, name: str) -> list[Any]:
        if scores is None or isinstance(scores, str | Mapping) or not isinstance(scores, Iterable):
            raise TypeError(
                f"The reward function {name!r} returned {shown(scores)}. It must return a list with one score, a number or "
                "None, for each completion."
            )
        scores = list(scores)
        for score in scores:
            if score is None:
                continue
            try:
                self.nan_count += math.isnan(score)
            except TypeError:
                raise TypeError(
                    f"The reward function {name!r} returned {shown(score)} for a completion; a score is a number, or None "
                    "where the function does not apply."
                ) from None
        return scores


@contextmanager
def checked_scores(trainer: Any) -> Iterator[ScoreCheck]:
    """The trainer's reward functions are watched by a [`ScoreCheck`]."""
    functions, check = trainer.reward_funcs, ScoreCheck()
    trainer.reward_funcs = [check.wrap(*pair) for pair in zip(functions, trainer.reward_func_names, strict=True)]
    try:
        yield check
    finally:
        trainer.reward_funcs = functions


def loading_arguments(args: PPOConfig) -> dict[str, Any]:
    """Of the policy's `model_init_kwargs`, those that hold for every model of the run."""
    given = args.model_init_kwargs or {}
    shared = {name: given[name] for name in _SHARED_LOADING_ARGUMENTS if name in given}
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        # Each process has a whole copy on its own device, as TRL does it for the policy.
        shared.pop("device_map", None)
    return {"trust_remote_code": args.trust_remote_code, **hub_arguments(given), **shared}


def score_affine(functions: list[Any], normalize: bool) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, each `(functions,)`, by which scores are centred and scaled."""
    pairs = [(getattr(f, "normalization", None) if normalize else None) or (0.0, 1.0) for f in functions]
    mean, std = zip(*pairs, strict=True)
    return torch.tensor(mean), torch.tensor(std)
