"""The critic: a value head on the policy's trunk, on an adapter of its own, or on a model of its own."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, load_peft_weights
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import find_adapter_config_file

from .roles import CRITIC
from .scoring import hub_arguments, load_reward_model

CRITIC_KINDS = ("adapter", "head", "model")
CRITIC_FOLDER = "critic"
VALUE_HEAD_FILE = "value_head.safetensors"
_PLACE_IN_REPOSITORY = ("revision", "subfolder", "gguf_file")


class _Float32Linear(nn.Linear):
    """A linear layer that computes in float32, also where DeepSpeed or FSDP keeps its weights in a shorter format."""

    def forward(self, states: Tensor) -> Tensor:
        with torch.autocast(states.device.type, enabled=False):
            return nn.functional.linear(states.float(), self.weight.float(), self.bias.float())


class ValueHead(nn.Module):
    """
    One scalar per position from the trunk's last hidden state, in float32 whatever the trunk's precision.

    It starts at zero, so that the first advantages are those of a policy gradient without baseline instead of noise.

    Args:
        hidden_size (`int`):
            Width of the trunk's last hidden state.
    """

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = _Float32Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Values `(B, L)` of hidden states `(B, L, H)`."""
        return self.linear(hidden_states).squeeze(-1)


class Critic(nn.Module):
    """
    The critic's own modules: the value head, and the trunk where it does not share the policy's.

    Args:
        hidden_size (`int`):
            Width of the hidden states that the values are read from.
        trunk ([`~transformers.PreTrainedModel`], *optional*):
            A model without language-model head; by default the values are read from the policy's trunk.
    """

    def __init__(self, hidden_size: int, trunk: PreTrainedModel | None = None):
        super().__init__()
        self.value_head = ValueHead(hidden_size)
        self.trunk = trunk


def load_critic_model(
    source: str | PreTrainedModel,
    normalization: tuple[float, float] | None = None,
    weight: float = 1.0,
    **model_init_kwargs: Any,
) -> Critic:
    """
    A critic with a trunk of its own.

    Args:
        source (`str` or [`~transformers.PreTrainedModel`]):
            Hub id, folder or instance of one of: a critic saved by [`PPOTrainer`], as it was; a reward model, whose score
            head becomes the value head; a language model, on whose trunk the value head starts at zero. Of an
            instance, the trunk is taken and not copied; it is trained whether it was frozen or not.
        normalization (`tuple[float, float]`, *optional*):
            Mean and standard deviation by which PPO centres and scales the scores of that reward model.
        weight (`float`, *optional*, defaults to `1.0`):
            Weight of that reward model among the rewards.
        model_init_kwargs:
            Passed to `from_pretrained`.

    Raises:
        ValueError: If a classifier has no linear score head with one output, or the model is quantised.
    """
    if not isinstance(source, str):
        return _critic_of(source, normalization, weight)
    model_init_kwargs.setdefault("trust_remote_code", False)
    if os.path.isfile(os.path.join(source, VALUE_HEAD_FILE)):
        critic = _critic_of(AutoModel.from_pretrained(source, **model_init_kwargs))
        critic.value_head.load_state_dict(load_file(os.path.join(source, VALUE_HEAD_FILE)))
        return critic
    if not _is_classifier(source, **model_init_kwargs):
        return _critic_of(AutoModel.from_pretrained(source, **model_init_kwargs))
    return _critic_of(load_reward_model(source, **model_init_kwargs), normalization, weight)


def _is_classifier(source: str, trust_remote_code: bool = False, **model_init_kwargs: Any) -> bool:
    """Whether it is a reward model, full or saved as an adapter."""
    hub = hub_arguments(model_init_kwargs)
    if find_adapter_config_file(source, **hub) is not None:
        return True
    where = {name: model_init_kwargs[name] for name in _PLACE_IN_REPOSITORY if name in model_init_kwargs}
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code, **hub, **where)
    return any("SequenceClassification" in name for name in config.architectures or ())


def _critic_of(
    model: PreTrainedModel, normalization: tuple[float, float] | None = None, weight: float = 1.0
) -> Critic:
    if isinstance(model, PeftModel):
        model = model.merge_and_unload()
    if hasattr(model, "hf_quantizer"):
        raise ValueError(
            f"A critic of its own cannot start from a quantised {type(model).__name__}, whose weights cannot be trained. "
            "Pass a `critic_model`, or choose critic='head' or, with an adapter, critic='adapter'."
        )
    # A reward model was frozen by its scorer, or by PEFT while it was an adapter.
    critic = Critic(model.config.get_text_config().hidden_size, model.base_model.requires_grad_(True))
    if "SequenceClassification" in type(model).__name__:
        _continue_score(critic.value_head, model, normalization or (0.0, 1.0), weight)
    return critic


@torch.no_grad()
def _continue_score(
    value_head: ValueHead, model: PreTrainedModel, normalization: tuple[float, float], weight: float
) -> None:
    """Start the value head as the score head, in the unit that PPO maximises: `weight * (score - mean) / std`."""
    score = next((m for m in model.children() if isinstance(m, nn.Linear) and m.out_features == 1), None)
    if score is None:
        raise ValueError(
            f"A critic cannot start from {type(model).__name__}: it has no linear score head with one output. Pass a "
            "`critic_model`, or choose critic='head'."
        )
    mean, std = normalization
    (score_weight,) = full_tensors([score.weight])
    value_head.linear.weight.copy_(score_weight.float() * (weight / std))
    bias = 0.0 if score.bias is None else full_tensors([score.bias])[0].item()
    value_head.linear.bias.fill_((bias - mean) * weight / std)


def full_tensors(parameters: list[Tensor]) -> list[Tensor]:
    """Copies of parameters that ZeRO-3 may have spread over the ranks; every rank must call it."""
    if not is_deepspeed_zero3_enabled():
        return [parameter.detach().clone() for parameter in parameters]
    import deepspeed

    with deepspeed.zero.GatheredParameters(parameters):
        return [parameter.detach().clone() for parameter in parameters]


def save_critic(critic: Critic, folder: str, state_dict: Mapping[str, Tensor] | None = None) -> None:
    """
    Write the value head and the trunk, where it has its own, so that a later run can start from them.

    Args:
        critic ([`Critic`]):
            The critic.
        folder (`str`):
            Folder to write to, made where missing. A critic's adapter is written there by PEFT.
        state_dict (`dict[str, torch.Tensor]`, *optional*):
            The whole policy's state, gathered, where its parameters are spread over the ranks.
    """
    state = critic.state_dict() if state_dict is None else _part(state_dict, CRITIC)
    os.makedirs(folder, exist_ok=True)
    head = {name: tensor.detach().cpu().contiguous() for name, tensor in _part(state, "value_head").items()}
    save_file(head, os.path.join(folder, VALUE_HEAD_FILE))
    if critic.trunk is not None:
        critic.trunk.save_pretrained(folder, state_dict=_part(state, "trunk"))


def _part(state: Mapping[str, Tensor], module: str) -> dict[str, Tensor]:
    """The tensors below the submodule `module`, wherever it is, named from there."""
    parts = {name: f".{name}".partition(f".{module}.")[2] for name in state}
    return {part: state[name] for name, part in parts.items() if part and f".{module}." in f".{name}"}


def load_critic(critic: Critic, folder: str, policy: PreTrainedModel | PeftModel) -> None:
    """
    Restore what [`save_critic`] wrote, the critic's adapter included.

    Args:
        critic ([`Critic`]):
            The critic.
        folder (`str`):
            Folder that holds it.
        policy ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            The model on whose base the critic's adapter is, where it has one.

    Raises:
        FileNotFoundError: If the folder holds no critic.
        ValueError: If it holds one with other parameters.
    """
    if not os.path.isfile(os.path.join(folder, VALUE_HEAD_FILE)):
        raise FileNotFoundError(
            f"`{folder}` has no `{VALUE_HEAD_FILE}`, so the critic cannot be restored. Resume from a checkpoint that "
            "PPOTrainer wrote with the same `critic`, or start a new run from its weights by passing it as `model`."
        )
    _copy_into(critic.value_head.state_dict(), load_file(os.path.join(folder, VALUE_HEAD_FILE)), folder)
    if critic.trunk is not None:
        saved = type(critic.trunk).from_pretrained(folder, dtype=critic.trunk.dtype)
        _copy_into(critic.trunk.state_dict(), saved.state_dict(), folder)
    if isinstance(policy, PeftModel) and CRITIC in policy.peft_config:
        own = get_peft_model_state_dict(policy, adapter_name=CRITIC)
        _copy_into(own, load_peft_weights(folder, device="cpu"), folder)


@torch.no_grad()
def _copy_into(own: Mapping[str, Tensor], saved: Mapping[str, Tensor], folder: str) -> None:
    """Copy whole tensors into a module's, of which FSDP may have left a part on each rank."""
    if own.keys() != saved.keys():
        raise ValueError(
            f"The critic in `{folder}` is not the one of this run: they differ in {sorted(own.keys() ^ saved.keys())[:3]}. "
            "Use the settings (`critic`, the adapter's configuration) that it was trained with."
        )
    for name, tensor in own.items():
        whole = saved[name].to(tensor.device)
        if isinstance(tensor, DTensor):
            whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements)
        tensor.copy_(whole)
