"""What a plan is made from."""

from dataclasses import dataclass

import torch

from ..models.products import PART_TOKENS
from .architecture import Architecture

CRITICS = ("head", "adapter", "model")
OFFLOADS = ("optimizer", "all")


@dataclass(frozen=True)
class RewardModel:
    """
    A reward model.

    Args:
        name (`str`):
            Id or folder.
        architecture ([`Architecture`]):
            The classifier, with its adapter where it is one.
        attached (`bool`):
            Whether it is an adapter of the policy's base, so that only adapter and score head are loaded.
    """

    name: str
    architecture: Architecture
    attached: bool


@dataclass(frozen=True)
class PlanSettings:
    """
    Settings of [`plan_memory`]; sizes are those of one process.

    Args:
        policy ([`Architecture`]):
            The policy, with its adapter under PEFT.
        reward_models (`tuple` of [`RewardModel`]):
            Models that score; Python functions cost nothing.
        prompt_length, completion_length (`int`):
            Longest prompt and completion, in tokens.
        micro_batch (`int`):
            Sequences per forward pass of policy, critic and reference (`per_device_train_batch_size`); of the update where
            it does not take parts of them.
        steps_per_generation (`int`):
            Micro-batches in a rollout.
        score_batch (`int`):
            Sequences per forward pass of a reward model (`per_device_eval_batch_size`).
        gradient_accumulation_steps (`int`):
            Micro-batches in an optimizer step.
        gradient_checkpointing (`bool`):
            Whether layers are computed again in the backward pass.
        critic (`str`):
            `"head"`, `"adapter"` or `"model"`.
        critic_trunk ([`Architecture`], *optional*):
            What runs for the critic besides the policy: a trunk of its own with `critic="model"`, the policy's base under
            the critic's adapter with `"adapter"`, nothing with `"head"`.
        has_reference (`bool`):
            Whether there is a reference: not with `beta=0`.
        continues_adapter (`bool`):
            Whether the policy is a saved adapter, whose initial state stays beside it as the reference.
        optimizer (`str`):
            `"adamw"` or `"adamw_8bit"`.
        autocast (`torch.dtype`, *optional*):
            Type of mixed precision.
        temperature (`float`):
            Of sampling.
        on_gpu (`bool`):
            Whether it runs on a GPU, where the fused LM head needs fewer buffers and LoRA is not merged to sample.
        num_gpus (`int`):
            Processes, one a GPU.
        zero_stage (`int`):
            Stage of ZeRO, 0 to 3; 0 is plain data parallelism.
        offload (`str`, *optional*):
            `"optimizer"` keeps the optimizer's states on the host, `"all"` the weights as well (stage 3).

    Raises:
        ValueError: For settings that no run can have.
    """

    policy: Architecture
    reward_models: tuple[RewardModel, ...]
    prompt_length: int
    completion_length: int
    micro_batch: int
    steps_per_generation: int
    score_batch: int
    gradient_accumulation_steps: int = 1
    gradient_checkpointing: bool = True
    critic: str = "head"
    critic_trunk: Architecture | None = None
    has_reference: bool = True
    continues_adapter: bool = False
    optimizer: str = "adamw"
    autocast: torch.dtype | None = None
    temperature: float = 1.0
    on_gpu: bool = True
    num_gpus: int = 1
    zero_stage: int = 0
    offload: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_length", "completion_length", "micro_batch", "steps_per_generation", "num_gpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.zero_stage not in range(4):
            raise ValueError(f"zero_stage must be 0, 1, 2 or 3, got {self.zero_stage}.")
        if self.offload not in (None, *OFFLOADS):
            raise ValueError(f"offload must be one of {OFFLOADS}, got {self.offload!r}.")
        needed = {"optimizer": 1, "all": 3}.get(self.offload or "", 0)
        if self.zero_stage < needed:
            raise ValueError(
                f"offload={self.offload!r} needs zero_stage {needed} or higher, got {self.zero_stage}: it is ZeRO that "
                "moves what it partitions to the host."
            )
        if self.critic not in CRITICS:
            raise ValueError(f"critic must be one of {CRITICS}, got {self.critic!r}.")
        if self.critic == "adapter" and self.policy.adapter is None:
            raise ValueError("critic='adapter' is a second adapter on the policy's base, which needs use_peft: true.")
        if (self.critic == "head") != (self.critic_trunk is None):
            raise ValueError(f"critic={self.critic!r} does not go with critic_trunk={self.critic_trunk}.")

    @property
    def rollout(self) -> int:
        """Sequences generated at once by one process."""
        return self.micro_batch * self.steps_per_generation

    @property
    def update_batch(self) -> int:
        """Sequences per forward pass of the update: a micro-batch, or a part of one where a CPU trains adapters alone."""
        is_plain = not self.on_gpu and self.num_gpus == 1 and self.zero_stage == 0 and self.autocast is None
        # The loss of a router, which most of those that can give one add, needs a micro-batch as a whole.
        is_routed = hasattr(self.policy.config.get_text_config(), "output_router_logits")
        if self.policy.adapter is None or self.critic == "model" or is_routed or not is_plain:
            return self.micro_batch
        return min(max(PART_TOKENS // self.length, 1), self.micro_batch)

    @property
    def accumulates(self) -> bool:
        """Whether an optimizer step has several backward passes."""
        return self.gradient_accumulation_steps > 1 or self.update_batch < self.micro_batch

    @property
    def length(self) -> int:
        """Tokens of prompt and completion."""
        return self.prompt_length + self.completion_length

    @property
    def compute_dtype(self) -> torch.dtype:
        """Type in which products are computed."""
        return self.autocast or self.policy.dtype
