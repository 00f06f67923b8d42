"""Where the policy comes from: a model, a model with a new adapter, or a saved adapter that is trained further."""

import os
from typing import Any, NamedTuple

from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import find_adapter_config_file
from trl.trainer.utils import create_model_from_path

from ..models.roles import POLICY
from ..models.scoring import hub_arguments
from .ppo_config import PPOConfig


class PolicySource(NamedTuple):
    """Id or folder of the policy's base, and the configuration of its adapter, where it has one."""

    base: str
    adapter: PeftConfig | None


def policy_source(
    model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None, args: PPOConfig
) -> PolicySource:
    """
    What the policy consists of, without loading it.

    Raises:
        ValueError: If `model` is a saved adapter and a new one is asked for on top.
    """
    if isinstance(model, PeftModel):
        return PolicySource(model.get_base_model().config._name_or_path, model.peft_config[POLICY])
    if not isinstance(model, str):
        return PolicySource(model.config._name_or_path, peft_config)
    hub = hub_arguments(args.model_init_kwargs)
    if find_adapter_config_file(model, **hub) is None:
        return PolicySource(model, peft_config)
    if peft_config is not None:
        raise ValueError(
            f"`{model}` is a saved adapter, and PPO trains it further: leave `peft_config` (in a recipe `use_peft`) out. "
            f"For a new adapter on top of it, merge it into its base first: `merge_adapter({model!r}, folder)`."
        )
    adapter = PeftConfig.from_pretrained(model, **hub)
    return PolicySource(adapter.base_model_name_or_path, adapter)


def load_adapter_policy(path: str, base: str, args: PPOConfig, quantization_config: Any) -> PeftModel:
    """A saved adapter on its base, to be trained further; it is its own reference (TRL's adapter `ref`)."""
    given = dict(args.model_init_kwargs or {})
    given.pop("revision", None)  # of the adapter's repository
    if quantization_config is not None:
        given["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        given["device_map"] = None
    given.setdefault("trust_remote_code", args.trust_remote_code)
    return PeftModel.from_pretrained(create_model_from_path(base, **given), path, is_trainable=True)


def merge_adapter(path: str, output: str, **model_init_kwargs: Any) -> None:
    """
    Merge a saved adapter into its base and save the result as a plain model, with tokenizer and generation config.

    The base is loaded in its own precision and without quantisation, which is where the merged weights belong.

    Args:
        path (`str`):
            Hub id or folder of the adapter, such as [`PPOTrainer`] saves.
        output (`str`):
            Folder to write to.
        model_init_kwargs:
            Passed to `from_pretrained`.
    """
    model = AutoPeftModelForCausalLM.from_pretrained(path, **model_init_kwargs).merge_and_unload()
    if os.path.isfile(os.path.join(path, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(path)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(path, **hub_arguments(model_init_kwargs)).save_pretrained(output)
