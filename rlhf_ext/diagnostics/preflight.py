"""X17: what is wrong with the settings, before a model is loaded."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .causes import cause
from .finding import Finding, Severity
from .history import SHORTEST_RUN
from .record import RunSettings

ZIEGLER_HORIZON = 10_000
"""Episodes; Ziegler's rule changes beta by at most 20 % per that many."""


@dataclass(frozen=True)
class PreflightConfig:
    """
    Thresholds.

    Args:
        far (`float`): Nats per sequence that no published recipe aims at.
        near (`float`): Nats per sequence that look like a target per token.
        factor (`float`): How far Ziegler's rule should be able to move beta within the run.
        critic_ratio (`float`): Critic's learning rate over the policy's, or the other way round; recipes use 1 to 10.
        few_sequences (`int`): Rollout whose KL and score are mostly noise.
        many_epochs (`int`): PPO epochs; recipes use 1 to 4.
    """

    far: float = 50.0
    near: float = 0.5
    factor: float = 2.0
    critic_ratio: float = 30.0
    few_sequences: int = 16
    many_epochs: int = 8


def _finding(name: str, severity: Severity, summary: str, remedy: str) -> Finding:
    """One setting is one certain cause, and the cure is to change it."""
    known = cause(name, summary, True, "Read from the settings.", remedy)
    return Finding("X17", f"settings: {name}", severity, 0, summary, causes=(known,))


def preflight(
    settings: RunSettings,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    min_new_tokens: int | None = None,
    other_sampling: Mapping[str, Any] | None = None,
    dropout: float | None = None,
    temperature_is_scored: bool | None = None,
    clips_gradient: bool | None = None,
    config: PreflightConfig | None = None,
) -> list[Finding]:
    r"""
    Reads the settings of a run for what cannot work, or works otherwise than it looks.

    Args:
        settings ([`RunSettings`]): The settings; what is `None` is not judged.
        top_k, top_p, min_p, repetition_penalty, min_new_tokens (*optional*): Of the sampler.
        other_sampling (`dict`, *optional*): What else of the sampler changes which tokens are likely.
        dropout (`float`, *optional*): Largest dropout probability that is active in training.
        temperature_is_scored (`bool`, *optional*): Whether the scored log-probabilities have the temperature too.
        clips_gradient (`bool`, *optional*): Whether the trainer applies `max_grad_norm`.
        config ([`PreflightConfig`], *optional*): Thresholds.

    Returns:
        `list[Finding]`: mode X17, the worst first.
    """
    limits = config or PreflightConfig()
    sampler = {
        "top_k": (top_k, (0, None)),
        "top_p": (top_p, (1.0, None)),
        "min_p": (min_p, (0.0, None)),
        "repetition_penalty": (repetition_penalty, (1.0, None)),
        "min_new_tokens": (min_new_tokens, (0, None)),
    }
    changed = [f"{name}={value}" for name, (value, neutral) in sampler.items() if value not in neutral]
    changed += [f"{name}={value}" for name, value in (other_sampling or {}).items()]
    found = [
        *_target(settings, limits),
        *_controller(settings, limits),
        *_sampling(settings, changed, temperature_is_scored),
        *_forward(settings, dropout),
        *_optimization(settings, clips_gradient, limits),
        *_length(settings, limits),
    ]
    return sorted(found, key=lambda finding: -finding.severity)


def _target(settings: RunSettings, limits: PreflightConfig) -> Iterator[Finding]:
    target, unit, tokens = settings.kl_target, settings.kl_unit, settings.max_completion_length
    if target is None:
        return
    if unit is None:
        yield _finding(
            "kl-unit",
            Severity.WARN,
            f"kl_target={target:g} has no unit: per sequence and per token differ by a factor of the length.",
            "Set kl_unit to 'sequence' or 'token'.",
        )
    if unit == "token" and tokens is not None and target * tokens > limits.far:
        yield _finding(
            "kl-target-far",
            Severity.WARN,
            f"kl_target={target:g} nats per token are up to {target * tokens:.3g} nats per sequence of {tokens} tokens.",
            f"Set kl_unit='sequence', or kl_target={6 / tokens:.2g} for 6 nats per sequence.",
        )
    if unit == "sequence" and not limits.near <= target <= limits.far:
        small = target < limits.near
        yield _finding(
            "kl-target-near" if small else "kl-target-far",
            Severity.WARN,
            f"kl_target={target:g} nats per sequence "
            + ("leave the policy no room; as a target per token it would be common." if small else "are very far."),
            "Set kl_unit='token'." if small else "Set kl_target to 2 to 20.",
        )


def _controller(settings: RunSettings, limits: PreflightConfig) -> Iterator[Finding]:
    if settings.beta == 0:
        yield _finding(
            "no-kl-penalty",
            Severity.INFO,
            "beta=0: no KL is measured, so that drift from the reference (M1) cannot be seen.",
            "Set beta=0.001 to measure it.",
        )
    planned, size = settings.planned_rollouts, settings.rollout_size
    if settings.kl_controller == "ziegler" and planned and size:
        factor = math.exp(min(planned * math.log1p(0.2 * size / ZIEGLER_HORIZON), 700.0))
        if factor < limits.factor:
            yield _finding(
                "controller-inert",
                Severity.WARN,
                f"kl_controller='ziegler' can change beta by a factor of {factor:.2f} at most in {planned} rollouts of "
                f"{size}.",
                "Set kl_controller='log_pi', whose speed fits the run.",
            )


def _sampling(settings: RunSettings, changed: list[str], scored: bool | None) -> Iterator[Finding]:
    if changed:
        yield _finding(
            "sampler",
            Severity.WARN,
            f"{', '.join(changed)}: tokens come from another distribution than the one whose log-probabilities are "
            "compared; the KL can turn negative, and is then a reward.",
            "Set top_k=0, top_p=1.0, repetition_penalty=1.0, and no minimal length.",
        )
    temperature = settings.temperature
    if temperature is not None and temperature != 1.0 and scored is False:
        yield _finding(
            "temperature-not-scored",
            Severity.WARN,
            f"temperature={temperature:g} shapes what is sampled and not the log-probabilities.",
            "Set temperature=1.0, or divide the logits by it in the forward pass.",
        )


def _forward(settings: RunSettings, dropout: float | None) -> Iterator[Finding]:
    if dropout:
        yield _finding(
            "dropout",
            Severity.WARN,
            f"Dropout of {dropout:g} is on: the ratio does not start at 1.",
            "Set disable_dropout=True.",
        )
    if settings.dtype == "float16":
        yield _finding(
            "float16",
            Severity.INFO,
            "float16 overflows above 65504, which log-probabilities of long sequences and value losses reach.",
            "Set bf16=True instead of fp16.",
        )


def _optimization(settings: RunSettings, clips: bool | None, limits: PreflightConfig) -> Iterator[Finding]:
    norm, own, policy = settings.max_grad_norm, settings.critic_learning_rate, settings.learning_rate
    if norm is not None and (norm <= 0 or clips is False):
        yield _finding(
            "gradient-not-clipped",
            Severity.WARN,
            f"max_grad_norm={norm:g} "
            + ("clips nothing." if norm <= 0 else "is set, and the trainer does not apply it."),
            "Set max_grad_norm=1.0 in a trainer that clips.",
        )
    if own is not None and policy and own / policy > limits.critic_ratio:
        yield _finding(
            "critic-learning-rate",
            Severity.WARN,
            f"critic_learning_rate={own:g} is {own / policy:.0f} times the policy's {policy:g}; recipes use 1 to 10 times.",
            f"Set critic_learning_rate to {10 * policy:.0e} or less.",
        )
    if own and policy and own / policy < 1 / limits.critic_ratio:
        yield _finding(
            "critic-learning-rate-low",
            Severity.WARN,
            f"critic_learning_rate={own:g} is {own / policy:.2g} times the policy's {policy:g}: the values lag behind the "
            "returns that the policy changes; recipes use 1 to 10 times.",
            f"Set critic_learning_rate to {policy:g} or more.",
        )
    if settings.num_epochs is not None and settings.num_epochs > limits.many_epochs:
        yield _finding(
            "epochs",
            Severity.INFO,
            f"num_iterations={settings.num_epochs}: late epochs work on clipped ratios.",
            "Set num_iterations=4.",
        )


def _length(settings: RunSettings, limits: PreflightConfig) -> Iterator[Finding]:
    planned, warmup = settings.planned_rollouts, settings.critic_warmup_rollouts
    if planned is not None and planned < SHORTEST_RUN:
        yield _finding(
            "short-run",
            Severity.INFO,
            f"{planned} rollouts are too few to tell trends from noise: only hard limits are watched.",
            f"Plan {SHORTEST_RUN} rollouts or more (smaller rollouts if need be).",
        )
    if planned and warmup and warmup > planned / 2:
        yield _finding(
            "critic-warmup",
            Severity.WARN,
            f"critic_warmup_rollouts={warmup} of {planned} rollouts: the policy stands still for most of the run.",
            "Set critic_warmup_rollouts to a tenth of the run or less.",
        )
    if settings.rollout_size is not None and settings.rollout_size < limits.few_sequences:
        yield _finding(
            "small-rollout",
            Severity.INFO,
            f"{settings.rollout_size} completions per rollout: KL and score of a rollout are mostly noise.",
            "Raise steps_per_generation or per_device_train_batch_size.",
        )
    if settings.missing_eos_penalty == 0:
        yield _finding(
            "missing-eos",
            Severity.INFO,
            "missing_eos_penalty is not set: a completion that is cut off scores like one that ends.",
            "Set missing_eos_penalty=1.0, unless texts of fixed length are wanted.",
        )
