"""What stays in memory through all phases: weights, optimizer states, communication buffers, the rollout."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from . import formulas
from .architecture import Architecture, Parameter, parameters_of
from .settings import PlanSettings


@dataclass(frozen=True)
class Part:
    """
    Bytes of one process.

    Args:
        role (`str`):
            `"policy"`, `"reference"`, `"critic"`, `"reward model"` or `"rollout"`.
        what (`str`):
            What they hold.
        bytes (`int`):
            How many.
        on_host (`bool`):
            Whether they are offloaded from the GPU.
    """

    role: str
    what: str
    bytes: int
    on_host: bool = False


def trained_parameters(settings: PlanSettings) -> dict[str, list[Parameter]]:
    """What the optimizer has, by role. The critic's value head is in float32."""
    policy = [p for p in parameters_of(settings.policy) if p.trainable]
    width = settings.policy.hidden_size
    critic = []
    if settings.critic_trunk is not None:
        critic = [p for p in parameters_of(settings.critic_trunk) if p.trainable]
        width = settings.critic_trunk.hidden_size
    head = [Parameter(shape, torch.float32, True, False, False, False) for shape in ((1, width), (1,))]
    return {"policy": policy, "critic": [*critic, *head]}


def resident_parts(settings: PlanSettings) -> list[Part]:
    """Everything that is there in every phase."""
    return [*_weights(settings), *_optimizer(settings), *_buffers(settings), _rollout(settings)]


def partitioned(size: int, settings: PlanSettings, from_stage: int) -> int:
    """Share of one process of what ZeRO partitions from a stage on."""
    return -(-size // settings.num_gpus) if settings.zero_stage >= from_stage else size


def stored_bytes(architecture: Architecture, parameters: Sequence[Parameter] | None = None) -> int:
    """Bytes of weights as they are stored."""
    chosen = parameters_of(architecture) if parameters is None else parameters
    return formulas.weight_bytes(chosen, architecture.quantization, architecture.double_quantization)


def _weights(settings: PlanSettings) -> list[Part]:
    policy = settings.policy
    own = parameters_of(policy)
    base = stored_bytes(policy, [p for p in own if not p.adapter])
    adapter = stored_bytes(policy, [p for p in own if p.adapter])
    head = formulas.value_head_bytes(settings.critic_trunk or policy)
    sizes = [("policy", "weights", base), ("policy", "adapter", adapter), ("critic", "value head", head)]
    if settings.has_reference and policy.adapter is None:
        sizes.append(("reference", "weights", base))
    if settings.continues_adapter:
        sizes.append(("reference", "adapter", adapter))
    if settings.critic_trunk is not None:
        what = "adapter" if settings.critic == "adapter" else "weights"
        trained = [p for p in parameters_of(settings.critic_trunk) if p.trainable]
        sizes.append(("critic", what, stored_bytes(settings.critic_trunk, trained)))
    for model in settings.reward_models:
        every = parameters_of(model.architecture)
        if model.attached:
            sizes.append(
                ("reward model", "adapter", stored_bytes(model.architecture, [p for p in every if p.adapter]))
            )
        else:
            sizes.append(("reward model", "weights", stored_bytes(model.architecture)))
    on_host = settings.offload == "all"
    return [Part(role, what, partitioned(size, settings, 3), on_host) for role, what, size in sizes if size]


def _optimizer(settings: PlanSettings) -> list[Part]:
    states = formulas.zero_optimizer_bytes if settings.zero_stage else formulas.optimizer_bytes
    sizes = {role: states(p, settings.optimizer) for role, p in trained_parameters(settings).items()}
    on_host = settings.offload is not None
    return [Part(role, "optimizer states", partitioned(n, settings, 1), on_host) for role, n in sizes.items()]


def _buffers(settings: PlanSettings) -> list[Part]:
    """DistributedDataParallel copies every gradient into buckets of its own (`gradient_as_bucket_view=False`)."""
    if settings.num_gpus == 1 or settings.zero_stage:
        return []
    return [Part(role, "DDP buckets", formulas.gradient_bytes(p)) for role, p in trained_parameters(settings).items()]


def _rollout(settings: PlanSettings) -> Part:
    size = formulas.rollout_bytes(settings.rollout, settings.prompt_length, settings.completion_length)
    return Part("rollout", "tensors", size)


def gathered_parts(settings: PlanSettings, architecture: Architecture, role: str, whole: bool = False) -> list[Part]:
    """
    Weights that ZeRO-3 gathers for a forward pass, beyond the share of the process: all of them to generate (TRL's
    `ds3_gather_for_generation`), else up to DeepSpeed's `stage3_max_live_parameters`. And the one weight that is unpacked
    from a quantised base.
    """
    parameters = parameters_of(architecture)
    parts = [Part(role, "unpacked weight", formulas.dequantized_bytes(architecture, parameters))]
    if settings.zero_stage == 3:
        total = formulas.weight_bytes(parameters, architecture.quantization, architecture.double_quantization)
        share = 0 if settings.offload == "all" else partitioned(total, settings, 3)
        limit = total if whole else formulas.ZERO3_LIVE_PARAMETERS * architecture.dtype.itemsize
        parts.append(Part(role, "gathered weights", min(total - share, limit)))
    return parts
