"""The settings of a run, as the diagnostics know them, and what is wrong with them before anything is loaded."""

import math
from typing import Any

from accelerate.logging import get_logger
from datasets import Dataset
from peft import PeftConfig
from transformers import PretrainedConfig

from ..diagnostics import Finding, RunSettings, Severity, preflight
from ..diagnostics.run_config import settings_from
from .ppo_config import HARMLESS_GENERATION_KWARGS, PPOConfig

logger = get_logger(__name__)

_SAMPLER = ("top_k", "top_p", "min_p", "repetition_penalty", "min_new_tokens")


def preflight_of(
    args: PPOConfig,
    *,
    prompts: int | None = None,
    model_config: PretrainedConfig | None = None,
    adapter: PeftConfig | None = None,
) -> list[Finding]:
    """
    What cannot work in the settings of a [`PPOTrainer`], or works otherwise than it looks (mode X17 of the diagnostics).

    Args:
        args ([`PPOConfig`]):
            Settings of the trainer.
        prompts (`int`, *optional*):
            Rows of the dataset, from which the length of the run follows where `max_steps` does not give it.
        model_config ([`~transformers.PretrainedConfig`], *optional*):
            Of the policy; read for dropout that `disable_dropout=False` leaves on.
        adapter ([`~peft.PeftConfig`], *optional*):
            Of the policy; read for the same.

    Returns:
        `list[Finding]`: the worst first; `finding.causes[0].remedy` is what to change.
    """
    own = args.generation_kwargs or {}
    sampler = {name: getattr(args, name, None) for name in _SAMPLER} | own
    read = {*_SAMPLER, *HARMLESS_GENERATION_KWARGS}
    return preflight(
        RunSettings(**settings_from(args.to_dict()) | _known(args, prompts)),
        **{name: sampler[name] for name in _SAMPLER},
        other_sampling={k: v for k, v in own.items() if k not in read and (k, v) != ("temperature", args.temperature)},
        dropout=None if args.disable_dropout else _dropout(model_config, adapter),
        # PPOTrainer divides logits by the temperature, and the Trainer clips.
        temperature_is_scored=True,
        clips_gradient=True,
    )


def warn_of_settings(args: PPOConfig, train_dataset: Any, adapter: PeftConfig | None) -> None:
    """
    Log the findings of [`preflight_of`] from WARN on, each with what to change.

    Args:
        args ([`PPOConfig`]):
            Settings of the trainer.
        train_dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Its prompts.
        adapter ([`~peft.PeftConfig`], *optional*):
            Of the policy.
    """
    prompts = len(train_dataset) if isinstance(train_dataset, Dataset) else None
    for finding in preflight_of(args, prompts=prompts, adapter=adapter):
        if finding.severity >= Severity.WARN:
            logger.warning(f"{finding.mode} {finding.title}: {finding.summary} {finding.causes[0].remedy}")


def planned_rollouts(args: PPOConfig, prompts: int | None) -> int | None:
    """
    Rollouts of a run, as the Trainer counts its steps; `None` where nothing says how long it is.

    Args:
        args ([`PPOConfig`]):
            Settings of the trainer.
        prompts (`int`, *optional*):
            Rows of the dataset.
    """
    if args.max_steps > 0:
        return max(1, args.max_steps // args.updates_per_rollout)
    if prompts is None:
        return None
    # A rollout that the prompts left over would not fill is not made.
    per_epoch = prompts // (args.generation_batch_size // args.num_generations) * args.updates_per_rollout
    return max(1, math.ceil(args.num_train_epochs * per_epoch) // args.updates_per_rollout)


def _known(args: PPOConfig, prompts: int | None) -> dict[str, Any]:
    """What the settings say of the run in other words than the diagnostics'."""
    known: dict[str, Any] = {"planned_rollouts": planned_rollouts(args, prompts)}
    if not (args.bf16 or args.fp16):
        dtype = str((args.model_init_kwargs or {}).get("dtype") or "auto").removeprefix("torch.")
        known["dtype"] = None if dtype == "auto" else dtype
    return known


def _dropout(model_config: PretrainedConfig | None, adapter: PeftConfig | None) -> float | None:
    """The largest probability that model and adapter name, whatever they call it; `None` where neither is known."""
    named = {**(model_config.to_dict() if model_config else {}), **(adapter.to_dict() if adapter else {})}
    # Of a classifier's head, which a policy has not.
    found = [
        value
        for name, value in named.items()
        if name.endswith(("dropout", "dropout_prob", "pdrop")) and not name.startswith(("classifier", "summary"))
    ]
    return max((float(value) for value in found if isinstance(value, int | float)), default=None)
