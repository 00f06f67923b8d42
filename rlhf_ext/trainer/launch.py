"""What the launcher must allow for."""

import os
from dataclasses import replace

from accelerate import Accelerator
from accelerate.utils import FullyShardedDataParallelPlugin
from transformers import TrainingArguments
from transformers.utils import strtobool

from .ppo_config import PPOConfig


def check_saves_weights(args: TrainingArguments) -> None:
    """
    Refuse a launch after which no weights would be saved that `from_pretrained` reads.

    Args:
        args ([`~transformers.TrainingArguments`]):
            Settings of the run.

    Raises:
        ValueError: For ZeRO-3 and FSDP where they leave the weights in pieces.
    """
    zero = args.deepspeed_plugin
    if zero is not None and zero.zero_stage == 3 and not zero.zero3_save_16bit_model:
        raise ValueError(
            "ZeRO-3 would save no weights, only DeepSpeed's own checkpoint. Set `zero3_save_16bit_model: true` in the "
            "configuration of accelerate, or `stage3_gather_16bit_weights_on_model_save` in that of DeepSpeed; "
            "configs/accelerate/zero3.yaml has it."
        )
    if args.fsdp_plugin_args is None and not strtobool(os.environ.get("ACCELERATE_USE_FSDP", "false")):
        return
    kind = FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {})).state_dict_type.name
    if kind != "FULL_STATE_DICT":
        raise ValueError(
            f"FSDP with the state dict type {kind} would save no model. Set `fsdp_state_dict_type: FULL_STATE_DICT` in "
            "the configuration of accelerate; configs/accelerate/fsdp2.yaml has it."
        )


def check_optimizer_has_critic(args: PPOConfig) -> None:
    """
    Refuse an optimizer or schedule of DeepSpeed's own where the critic is to have a rate or a warm-up of its own.

    Args:
        args ([`PPOConfig`]):
            Settings of the run.

    Raises:
        ValueError: If they would be without effect, or keep the critic from learning.
    """
    config = {} if args.deepspeed_plugin is None else args.deepspeed_plugin.deepspeed_config
    given = [name for name in ("optimizer", "scheduler") if name in config]
    wanted = [name for name in ("critic_learning_rate", "critic_warmup_rollouts") if getattr(args, name)]
    if given and wanted:
        raise ValueError(
            f"{' and '.join(wanted)} would have no effect: DeepSpeed's configuration has its own {' and '.join(given)}, "
            "which know policy and critic as one. Remove them there; optim, learning_rate and lr_scheduler_type of the "
            "recipe then hold."
        )


def return_unrounded(accelerator: Accelerator) -> None:
    """
    Let a forward call under FSDP2 return float32 where it computes it.

    accelerate has FSDP2 round every output to the training precision: log-probabilities around -5 to steps of 0.03, of
    which the ratio and KL are made.

    Args:
        accelerator ([`~accelerate.Accelerator`]):
            Accelerator that has not prepared a model.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version == 2 and plugin.mixed_precision_policy is not None:
        plugin.mixed_precision_policy = replace(plugin.mixed_precision_policy, output_dtype=None)
