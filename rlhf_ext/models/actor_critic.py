"""One forward call for the outputs of several roles."""

import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.utils import ModelOutput

from .critic import Critic
from .fused_head import at_labels
from .roles import CRITIC, AdapterSwitch

ACTOR_CRITIC, REFERENCE = "actor_critic", "reference"


@dataclass
class ActorCriticOutput(ModelOutput):
    """
    Per-token outputs of one forward call: at each input, of the token after it.

    Args:
        log_probs (`torch.Tensor` of shape `(B, L)`):
            Log-probability of each next token, in nats; zero where it has no label.
        entropy (`torch.Tensor` of shape `(B, L)`):
            Entropy of the distribution that token was drawn from, in nats.
        state_values (`torch.Tensor` of shape `(B, L)`):
            Value of the state in which that token was drawn. Not called `values`: an output is a dict, and DeepSpeed
            calls `outputs.values()`.
        aux_loss (`torch.Tensor`, *optional*):
            Load-balancing loss of a mixture of experts.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    state_values: Tensor | None = None
    aux_loss: Tensor | None = None


def add_roles(
    model: PreTrainedModel,
    critic: Critic,
    switch: AdapterSwitch,
    critic_adapter: str | None,
    reference_adapter: str | None,
    score_heads: Mapping[str, nn.Linear],
) -> None:
    """
    Let a causal language model that has TRL's fused LM head compute the outputs of every role that lives on it.

    Afterwards `model(..., role=...)` returns, for the role

    - `"actor_critic"` (with `shift_labels`): an [`ActorCriticOutput`], in one call as hooks of DDP, ZeRO and FSDP require;
    - `"critic"`: the values alone, where the critic does not read the policy's trunk;
    - `"reference"` (with `shift_labels`): TRL's fused output under the reference's adapter;
    - the name of a reward model's adapter: scores `(B, 1)` as `logits`, read at the last real token.

    Without `role` the forward, and so generation, is unchanged. `save_pretrained` does not write what is added.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, without its PEFT or distributed wrapper.
        critic ([`Critic`]):
            Value head, and trunk where it has its own.
        switch ([`AdapterSwitch`]):
            The switch of the policy's adapters.
        critic_adapter (`str`, *optional*):
            Adapter of the policy's base that the values are read under, where the critic has one.
        reference_adapter (`str`, *optional*):
            Adapter of the reference; `None` for the base alone.
        score_heads (`dict[str, torch.nn.Linear]`):
            Score heads of the reward models on the policy's base, by adapter.
    """
    _add_submodules(model, critic, score_heads)
    plain_forward = at_labels(model, model.forward)

    @functools.wraps(plain_forward)
    def forward(self: PreTrainedModel, *args: Any, role: str | None = None, **kwargs: Any) -> Any:
        if role is None:
            return plain_forward(*args, **kwargs)
        if role == REFERENCE:
            with switch(reference_adapter):
                return plain_forward(*args, fused_lm_head=True, **kwargs)
        if role == CRITIC:
            return ActorCriticOutput(state_values=_critic_values(self, kwargs, switch, critic_adapter))
        if role in self.score_heads:
            with switch(role):
                return _scores(self.base_model, self.score_heads[role], kwargs)
        kept: list[Tensor] = []
        outputs = plain_forward(*args, fused_lm_head=True, states=kept, **kwargs)
        if self.critic.trunk is None and critic_adapter is None:
            values = self.critic.value_head(kept[0])
        else:
            values = _critic_values(self, kwargs, switch, critic_adapter)
        return ActorCriticOutput(outputs.log_probs, outputs.entropy, values, outputs.aux_loss)

    model.forward = types.MethodType(forward, model)


def _add_submodules(model: PreTrainedModel, critic: Critic, score_heads: Mapping[str, nn.Linear]) -> None:
    model.critic = critic
    model.score_heads = nn.ModuleDict(score_heads)
    added = [f"{prefix}.{name}" for prefix in (CRITIC, "score_heads") for name in getattr(model, prefix).state_dict()]
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *added}


def _critic_values(
    policy: PreTrainedModel, inputs: Mapping[str, Any], switch: AdapterSwitch, adapter: str | None
) -> Tensor:
    """Of a critic that does not read the policy's trunk as the policy has it."""
    if policy.critic.trunk is not None:
        states = _states(policy.critic.trunk, inputs)
    else:
        with switch(adapter):
            states = _states(policy.base_model, inputs)
    return policy.critic.value_head(states)


def _states(trunk: nn.Module, inputs: Mapping[str, Any]) -> Tensor:
    names = ("input_ids", "attention_mask", "position_ids")
    return trunk(**{name: inputs[name] for name in names if name in inputs}, use_cache=False).last_hidden_state


def _scores(trunk: nn.Module, head: nn.Linear, inputs: Mapping[str, Any]) -> SequenceClassifierOutput:
    states = _states(trunk, inputs)
    # Padding is on the right.
    last = inputs["attention_mask"].sum(1) - 1
    states = states[torch.arange(len(states), device=states.device), last]
    return SequenceClassifierOutput(logits=head(states.to(head.weight.dtype)))
