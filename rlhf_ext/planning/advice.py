"""Which setting would lower the peak most: each is changed alone, and the plan made again."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import LoraConfig

from .architecture import Architecture
from .plan import MemoryPlan, plan_memory
from .settings import PlanSettings


@dataclass(frozen=True)
class Change:
    """
    A setting that lowers the peak.

    Args:
        setting (`str`):
            Name and value, as a recipe has them.
        peak (`int`):
            Bytes on the device of one process with it.
    """

    setting: str
    peak: int


def changes_that_help(plan: MemoryPlan, phase: str | None = None) -> list[Change]:
    """
    Changes of one setting that lower the peak, the best first.

    Those that leave the optimizer's batch and the rollout as they are come with what keeps them so. Lengths and the
    KL penalty belong to the task and are not touched.

    Args:
        plan ([`MemoryPlan`]):
            The plan.
        phase (`str`, *optional*):
            Of this phase's peak; by default of the highest of all.
    """

    def peak(plan: MemoryPlan) -> int:
        return (plan.peak if phase is None else plan.phase(phase)).bytes

    changes = [Change(name, peak(plan_memory(settings))) for name, settings in _alternatives(plan.settings)]
    return sorted((c for c in changes if c.peak < peak(plan)), key=lambda change: change.peak)


def _alternatives(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    yield from _smaller_batches(settings)
    yield from _less_state(settings)
    yield from _smaller_weights(settings)
    yield from _more_machinery(settings)


def _smaller_batches(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    if not settings.gradient_checkpointing:
        yield "gradient_checkpointing: true", replace(settings, gradient_checkpointing=True)
    half, steps = settings.micro_batch // 2, 2 * settings.steps_per_generation
    if half:
        accumulation = 2 * settings.gradient_accumulation_steps
        sizes: dict[str, Any] = {
            "micro_batch": half,
            "gradient_accumulation_steps": accumulation,
            "steps_per_generation": steps,
        }
        names = f"gradient_accumulation_steps: {accumulation} and steps_per_generation: {steps}"
        yield f"per_device_train_batch_size: {half} (with {names})", replace(settings, **sizes)
    fewer = settings.steps_per_generation // 2
    if fewer and fewer % settings.gradient_accumulation_steps == 0:
        name = f"steps_per_generation: {fewer} (half the rollout)"
        yield name, replace(settings, steps_per_generation=fewer)
    if settings.score_batch > 1:
        score_batch = settings.score_batch // 2
        yield f"per_device_eval_batch_size: {score_batch}", replace(settings, score_batch=score_batch)


def _less_state(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    if settings.optimizer == "adamw":
        yield "optim: adamw_bnb_8bit", replace(settings, optimizer="adamw_8bit")
    if settings.critic != "head":
        yield "critic: head", replace(settings, critic="head", critic_trunk=None)
    if settings.policy.adapter is None:
        adapter = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
        policy = replace(settings.policy, adapter=adapter)
        critic: dict[str, Any] = {"critic": "adapter", "critic_trunk": policy} if settings.critic == "model" else {}
        name = "use_peft: true (rank 16 on all-linear)"
        yield name, replace(settings, policy=policy, **critic)


def _smaller_weights(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    policy = settings.policy
    if settings.on_gpu and policy.dtype == torch.float32:
        yield "dtype: bfloat16", _in_dtype(settings, torch.bfloat16, None)
    if policy.adapter is not None and policy.quantization is None:
        four: dict[str, Any] = {"quantization": "4bit", "double_quantization": True, "adapter_dtype": torch.bfloat16}
        models = tuple(
            replace(m, architecture=replace(m.architecture, **four)) if m.attached else m
            for m in settings.reward_models
        )
        small = replace(policy, **four)
        critic: dict[str, Any] = {"critic_trunk": small} if settings.critic == "adapter" else {}
        quantized = replace(settings, policy=small, reward_models=models, **critic)
        yield "load_in_4bit: true (with use_bnb_nested_quant: true)", quantized


def _in_dtype(settings: PlanSettings, dtype: torch.dtype, adapter_dtype: torch.dtype | None) -> PlanSettings:
    """The same models in another precision."""

    def changed(model: Architecture) -> Architecture:
        return replace(model, dtype=dtype, adapter_dtype=adapter_dtype or model.adapter_dtype)

    policy, trunk = changed(settings.policy), settings.critic_trunk
    if trunk is not None:
        trunk = policy if trunk is settings.policy else changed(trunk)
    rewards = [
        replace(m, architecture=changed(m.architecture) if m.attached else replace(m.architecture, dtype=dtype))
        for m in settings.reward_models
    ]
    return replace(settings, policy=policy, critic_trunk=trunk, reward_models=tuple(rewards))


def _more_machinery(settings: PlanSettings) -> Iterator[tuple[str, PlanSettings]]:
    if settings.num_gpus > 1 and settings.zero_stage < 3:
        half = settings.autocast
        # DeepSpeed keeps the weights themselves in what mixed precision computes in.
        base = settings if half is None else replace(_in_dtype(settings, half, half), autocast=None)
        for stage in range(settings.zero_stage + 1, 4):
            yield f"--zero_stage {stage}", replace(base, zero_stage=stage)
    if settings.zero_stage and settings.offload is None:
        yield "--offload optimizer", replace(settings, offload="optimizer")
