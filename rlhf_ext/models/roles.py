"""Adapters of one base as roles: policy, reference, critic and reward model share one copy of the weights."""

import copy
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from peft import PeftConfig, PeftModel, PeftType, TaskType
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

# Names of PEFT adapters; `default` and `ref` are TRL's, several reward models are numbered.
POLICY, INITIAL_POLICY, CRITIC, REWARD = "default", "ref", "critic", "reward"

_SUPPORTED_TYPES = (PeftType.LORA, PeftType.IA3, PeftType.LOHA, PeftType.LOKR, PeftType.OFT)
# These initialisations move a part of the base weights into the adapter.
_BASE_CHANGING_INITS = ("corda", "loftq", "lora_ga", "olora", "pissa")
_NOT_OF_POLICY = re.compile(rf"\.({CRITIC}|{REWARD}\d+)\.")


class AdapterSwitch:
    """
    Chooses the adapter that the layers of a model use, without touching what is trainable.

    PEFT's own `set_adapter` and `disable_adapter` also freeze every other adapter, and autograd drops the gradients of
    parameters that are frozen when it reaches them: a critic trained beside the policy would stand still.

    Args:
        model (`torch.nn.Module`):
            Model that has all its adapters; without any, a switch has no effect.
    """

    def __init__(self, model: nn.Module):
        self._layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
        self.active: str | None = POLICY

    @contextmanager
    def __call__(self, adapter: str | None) -> Iterator[None]:
        """
        Inside, the adapted layers use `adapter`; afterwards, and when an exception passes, the one before.

        Args:
            adapter (`str`, *optional*):
                Name of the adapter; `None` for the base model alone.
        """
        before = self.active
        self._set(adapter)
        try:
            yield
        finally:
            self._set(before)

    def checkpoint_contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """
        The `context_fn` of [`torch.utils.checkpoint.checkpoint`]: a layer is recomputed in backward with the adapter it
        had in forward, whichever is active by then.
        """
        return nullcontext(), self(self.active)

    def _set(self, adapter: str | None) -> None:
        for layer in self._layers:
            layer._disable_adapters = adapter is None
            if adapter is not None:
                layer._active_adapter = [adapter]
        self.active = adapter


def make_checkpointing_role_aware(model: PreTrainedModel, switch: AdapterSwitch) -> None:
    """
    Let gradient checkpointing of `model`, whenever it is switched on, recompute each layer in the role of its forward.

    Non-reentrant checkpointing is used whatever was asked for, since only that takes a context for recomputation.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model without its PEFT wrapper.
        switch ([`AdapterSwitch`]):
            The switch of its adapters.
    """
    in_role = partial(checkpoint, use_reentrant=False, context_fn=switch.checkpoint_contexts)
    set_checkpointing = model._set_gradient_checkpointing

    def set_role_aware(enable: bool = True, gradient_checkpointing_func: Any = None, **kwargs: Any) -> None:
        set_checkpointing(enable=enable, gradient_checkpointing_func=in_role, **kwargs)

    model._set_gradient_checkpointing = set_role_aware


def check_adapter(config: PeftConfig) -> None:
    """
    Refuse an adapter whose model is not the base when it is off, or that needs a training loop of its own.

    Args:
        config ([`~peft.PeftConfig`]):
            Configuration of the policy's adapter.

    Raises:
        ValueError: For adapter types, biases and initialisations that do not work; the message names them.
    """
    if config.peft_type not in _SUPPORTED_TYPES:
        raise ValueError(
            f"Adapters of the type {config.peft_type.value} do not work with PPOTrainer, where an adapter must be one "
            "role among several on the same base. Use LoRA (`LoraConfig`, also with `use_dora`) or one of "
            f"{', '.join(kind.value for kind in _SUPPORTED_TYPES[1:])}."
        )
    task = config.task_type
    if task not in (None, TaskType.CAUSAL_LM):
        raise ValueError(f"task_type={str(task)!r} in the adapter's configuration is not a policy's. Use 'CAUSAL_LM'.")
    bias = getattr(config, "bias", "none")
    if bias != "none":
        raise ValueError(
            f"bias={bias!r} in the adapter's configuration trains the base's own biases, so the base with the adapter "
            "off would no longer be the reference. Use bias='none'."
        )
    if getattr(config, "layer_replication", None):
        raise ValueError(
            f"layer_replication={config.layer_replication} changes the base, which would not be the reference. Save the "
            "model with its layers replicated, and start from that."
        )
    init = getattr(config, "init_lora_weights", True)
    if isinstance(init, str) and init.lower().startswith(_BASE_CHANGING_INITS):
        raise ValueError(
            f"init_lora_weights={init!r} changes the base's weights, so the base with the adapter off would not be the "
            "reference. Use the default initialisation, or save the initialised model and its adapter and start from those."
        )


def check_trained_tokens(config: PeftConfig | None, base: PretrainedConfig) -> None:
    """
    Refuse trained tokens of the LM head: the fused head that scores reads the weights beside them, as they were.

    Args:
        config ([`~peft.PeftConfig`], *optional*):
            Configuration of the policy's adapter.
        base ([`~transformers.PretrainedConfig`]):
            Configuration of the model that it is on.

    Raises:
        ValueError: If the tokens are the LM head's, by name or because it is tied to the embeddings.
    """
    tokens = getattr(config, "trainable_token_indices", None)
    by_name = isinstance(tokens, dict) and any("lm_head" in name for name in tokens)
    if tokens and (by_name or base.get_text_config().tie_word_embeddings):
        why = "names the LM head" if by_name else "trains the LM head too, which this model ties to its embeddings"
        raise ValueError(
            f"trainable_token_indices={tokens} in the adapter's configuration {why}, and the log-probabilities would be "
            "computed without it. Leave it out; to train the embeddings use modules_to_save=['embed_tokens'] on a model "
            "with tie_word_embeddings=False."
        )


def add_critic_adapter(model: PeftModel) -> None:
    """
    Add a trainable adapter for the critic, with the configuration and precision of the policy's and weights of its own.

    Args:
        model ([`~peft.PeftModel`]):
            The policy; its adapter is named `default`.
    """
    config = copy.deepcopy(model.peft_config[POLICY])
    # Modules trained as a whole (the embeddings, say) stay the policy's; the initialisation must not read the base.
    config.modules_to_save = None
    if hasattr(config, "init_lora_weights"):
        config.init_lora_weights = True
    model.add_adapter(CRITIC, config)
    parameters = dict(model.named_parameters())
    for name, parameter in parameters.items():
        if belongs_to(name, CRITIC):
            # PEFT may have raised the precision, which TRL lowers again where ZeRO-3 and 4-bit bases want it low.
            parameter.data = parameter.data.to(parameters[_renamed(name, CRITIC, POLICY)].dtype)
    model.set_requires_grad(CRITIC)


def belongs_to(name: str, role: str) -> bool:
    """Whether a parameter's name is that of the critic, or of one reward model: their adapters and heads carry its name."""
    return f".{role}." in f".{name}."


def belongs_to_policy(name: str) -> bool:
    """Whether a parameter's name is neither that of the critic nor that of a reward model."""
    return _NOT_OF_POLICY.search(f".{name}.") is None


def _renamed(name: str, old: str, new: str) -> str:
    return f".{name}.".replace(f".{old}.", f".{new}.").strip(".")
