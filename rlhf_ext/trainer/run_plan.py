"""The memory plan of a run that is under way."""

import copy
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..models.reward_adapter import RewardAdapter
from ..models.roles import CRITIC, INITIAL_POLICY, POLICY
from ..models.scoring import RewardModelScorer
from ..planning.architecture import Architecture
from ..planning.plan import MemoryPlan, plan_memory
from ..planning.settings import RewardModel
from .recipe_plan import Launch, plan_settings


def plan_of_run(trainer: Any) -> MemoryPlan:
    """
    What `rlhf-ext plan` would print of the run of a trainer, with the longest prompt of its present rollout.

    Args:
        trainer ([`PPOTrainer`]):
            The trainer; its models have their weights, of which only shapes and types are read.

    Raises:
        ValueError: For a run that cannot be planned, such as one under FSDP.
    """
    if trainer.is_fsdp_enabled:
        raise ValueError("FSDP is not planned for")
    adapters = trainer.model.peft_config if is_peft_model(trainer.model) else {}
    base = trainer.model.get_base_model() if adapters else trainer.model
    policy = _architecture(base, "lm", adapters.get(POLICY), dropout=not trainer.args.disable_dropout)
    scorers = [function for function in trainer.reward_funcs if isinstance(function, RewardModelScorer)]
    trunk = trainer.critic.trunk
    critic = "model" if trunk is not None else "adapter" if CRITIC in adapters else "head"
    settings = plan_settings(
        trainer.args,
        _launch(trainer),
        policy,
        tuple(_reward_model(scorer, _unwrapped(trainer, scorer.model), policy) for scorer in scorers),
        critic,
        trainer.longest_prompt,
        continues_adapter=INITIAL_POLICY in adapters,
        trunk=None if trunk is None else trunk.config,
    )
    return plan_memory(settings)


def _unwrapped(trainer: Any, model: nn.Module | RewardAdapter) -> Any:
    return trainer.accelerator.unwrap_model(model) if isinstance(model, nn.Module) else model


def _launch(trainer: Any) -> Launch:
    on_gpu, plugin = trainer.accelerator.device.type != "cpu", trainer.accelerator.state.deepspeed_plugin
    if plugin is None:
        return Launch(trainer.args.world_size, on_gpu=on_gpu)
    zero = plugin.deepspeed_config.get("zero_optimization", {})
    moved = [
        name for name in ("optimizer", "param") if zero.get(f"offload_{name}", {}).get("device", "none") != "none"
    ]
    offload = "all" if "param" in moved else "optimizer" if moved else None
    return Launch(trainer.args.world_size, plugin.zero_stage, offload, on_gpu)


def _architecture(model: PreTrainedModel, kind: str, adapter: Any = None, dropout: bool = False) -> Architecture:
    config = copy.deepcopy(model.config)
    given = config.__dict__.pop("quantization_config", None)
    bits = [f"{n}bit" for n in (4, 8) if getattr(given, f"load_in_{n}bit", False)]
    if given is not None and not bits:
        raise ValueError(f"the quantisation {type(given).__name__} is not planned for")
    adapter_dtype = next((p.dtype for name, p in model.named_parameters() if f".{POLICY}." in name), None)
    return Architecture(
        config=config,
        kind=kind,
        dtype=model.dtype,
        adapter=adapter,
        adapter_dtype=adapter_dtype,
        quantization=bits[0] if bits else None,
        double_quantization=bool(getattr(given, "bnb_4bit_use_double_quant", False)),
        attention="eager" if config._attn_implementation == "eager" else "sdpa",
        dropout=dropout,
    )


def _reward_model(scorer: RewardModelScorer, model: Any, policy: Architecture) -> RewardModel:
    if isinstance(model, RewardAdapter):
        config = copy.deepcopy(policy.config)
        config.num_labels = 1
        adapter = copy.deepcopy(model.policy.peft_config[model.name])
        adapter.inference_mode = False
        attached = Architecture(
            config, "classifier", policy.dtype, adapter, policy.adapter_dtype, policy.quantization,
            policy.double_quantization, policy.attention,
        )  # fmt: skip
        return RewardModel(scorer.__name__, attached, attached=True)
    adapters: dict[str, Any] = model.peft_config if is_peft_model(model) else {}
    base = model.get_base_model() if adapters else model
    return RewardModel(scorer.__name__, _architecture(base, "classifier", adapters.get(POLICY)), attached=False)
