"""Where the policy comes from: a model, a model with a new adapter, or a saved adapter that is trained further."""

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from torch import nn
from transformers import AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import set_hf_deepspeed_config, unset_hf_deepspeed_config
from transformers.utils import find_adapter_config_file
from trl.trainer.utils import create_model_from_path

from ..models.roles import POLICY
from ..models.scoring import hub_arguments
from ..models.sources import reading
from .ppo_config import PPOConfig


class PolicySource(NamedTuple):
    """
    Id or folder of the policy's base, the configuration of its adapter, where it has one, the base's revision, and whether
    it is an instance, whose weights may have changed since they were loaded.
    """

    base: str
    adapter: PeftConfig | None
    revision: str | None = None
    is_instance: bool = False


def policy_source(
    model: str | PreTrainedModel | PeftModel, peft_config: PeftConfig | None, args: PPOConfig
) -> PolicySource:
    """
    What the policy consists of, without loading it.

    Raises:
        ValueError: If `model` is a saved adapter and a new one is asked for on top, or an instance with nothing to train.
    """
    if isinstance(model, PeftModel) and POLICY not in model.peft_config:
        raise ValueError(
            f"The policy's adapter must be named {POLICY!r}; this PeftModel has {', '.join(model.peft_config)}. Leave "
            "adapter_name out when it is made or loaded."
        )
    if isinstance(model, PeftModel) or (isinstance(model, nn.Module) and peft_config is None):
        if not any(parameter.requires_grad for parameter in model.parameters()):
            raise ValueError(
                "No parameter of the policy requires a gradient, so it would never learn. Load an adapter to be trained "
                "further with PeftModel.from_pretrained(..., is_trainable=True); pass a model before it is frozen."
            )
    if isinstance(model, PeftModel):
        name = model.get_base_model().config._name_or_path
        return PolicySource(name, model.peft_config[POLICY], is_instance=True)
    if not isinstance(model, str):
        return PolicySource(model.config._name_or_path, peft_config, is_instance=True)
    where = _place_on_hub(args)
    with reading("model", model):
        is_adapter = find_adapter_config_file(model, **where) is not None
    if not is_adapter:
        return PolicySource(model, peft_config, where.get("revision"))
    if peft_config is not None:
        raise ValueError(
            f"`{model}` is a saved adapter, and PPO trains it further: leave `peft_config` (in a recipe `use_peft`) out. "
            f"For a new adapter on top of it, merge it into its base first: `merge_adapter({model!r}, folder)`."
        )
    adapter = PeftConfig.from_pretrained(model, **where)
    return PolicySource(adapter.base_model_name_or_path, adapter, adapter.revision)


def _place_on_hub(args: PPOConfig) -> dict[str, Any]:
    """How the Hub is reached, and the revision of the policy's own repository."""
    given = args.model_init_kwargs or {}
    return hub_arguments(given) | ({"revision": given["revision"]} if "revision" in given else {})


def load_adapter_policy(path: str, source: PolicySource, args: PPOConfig, quantization_config: Any) -> PeftModel:
    """A saved adapter on its base, to be trained further; it is its own reference (TRL's adapter `ref`)."""
    given = {**(args.model_init_kwargs or {}), "revision": source.revision or "main"}
    if quantization_config is not None:
        given["quantization_config"] = quantization_config
    if args.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        given["device_map"] = None
    given.setdefault("trust_remote_code", args.trust_remote_code)
    base = create_model_from_path(source.base, **given)
    return PeftModel.from_pretrained(base, path, is_trainable=True, **_place_on_hub(args))


def copy_of_shared(model: Any, others: list[Any]) -> Any:
    """The model itself, or a copy where it is one of the others too, whose weights its role would change or freeze."""
    is_shared = isinstance(model, nn.Module) and any(model is other for other in others)
    return copy.deepcopy(model) if is_shared else model


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
    with _loading_whole_weights():
        model = AutoPeftModelForCausalLM.from_pretrained(path, **model_init_kwargs).merge_and_unload()
    if os.path.isfile(os.path.join(path, "generation_config.json")):
        model.generation_config = GenerationConfig.from_pretrained(path)
    model.save_pretrained(output)
    trusts = model_init_kwargs.get("trust_remote_code", False)
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trusts, **hub_arguments(model_init_kwargs))
    tokenizer.save_pretrained(output)


@contextmanager
def _loading_whole_weights() -> Iterator[None]:
    """After a run under ZeRO-3, transformers would divide what it loads over processes of which only one may come here."""
    if not is_deepspeed_zero3_enabled():
        yield
        return
    plugin = AcceleratorState().deepspeed_plugin
    unset_hf_deepspeed_config()
    try:
        yield
    finally:
        set_hf_deepspeed_config(plugin.hf_ds_config)
