"""The critic that shares the policy's trunk."""

import functools
import os
import types
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

VALUE_HEAD_FILE = "value_head.safetensors"


@dataclass
class ActorCriticOutput(ModelOutput):
    """
    Per-token outputs of one forward call, aligned with `input_ids[:, 1:]`.

    Args:
        log_probs (`torch.Tensor` of shape `(B, L - 1)`):
            Log-probability of each next token, in nats.
        entropy (`torch.Tensor` of shape `(B, L - 1)`):
            Entropy of the distribution that token was drawn from, in nats.
        state_values (`torch.Tensor` of shape `(B, L - 1)`):
            Value of the state in which that token was drawn. Not called `values`: an output is a dict, and DeepSpeed
            calls `outputs.values()`.
        aux_loss (`torch.Tensor`, *optional*):
            Load-balancing loss of a mixture of experts.
    """

    log_probs: Tensor | None = None
    entropy: Tensor | None = None
    state_values: Tensor | None = None
    aux_loss: Tensor | None = None


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
        self.linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Values `(B, L)` of hidden states `(B, L, H)`."""
        with torch.autocast(hidden_states.device.type, enabled=False):
            return self.linear(hidden_states.float()).squeeze(-1)


def add_value_head(model: PreTrainedModel) -> ValueHead:
    """
    Attach a [`ValueHead`] to a causal language model that already has TRL's fused LM head.

    Afterwards `model(..., labels=..., fused_lm_head=True)` returns an [`ActorCriticOutput`]: log-probabilities and
    values come out of the same forward call, as the hooks of DDP, ZeRO and FSDP require. Without `fused_lm_head=True`
    the forward, and so generation, is unchanged. The head is not written by `save_pretrained`: a saved policy stays a
    plain causal language model (see [`save_value_head`]).

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, without its PEFT or distributed wrapper.

    Returns:
        [`ValueHead`]: The head, also reachable as `model.value_head`.
    """
    head = ValueHead(model.config.get_text_config().hidden_size).to(model.get_output_embeddings().weight.device)
    model.value_head = head
    keys = [f"value_head.{name}" for name, _ in head.named_parameters()]
    model._keys_to_ignore_on_save = {*(model._keys_to_ignore_on_save or ()), *keys}
    fused_forward = model.forward

    @functools.wraps(fused_forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if not fused_lm_head:
            return fused_forward(*args, **kwargs)
        hidden: list[Tensor] = []
        # The fused head does not return the hidden states; the trunk's own output is read instead.
        hook = self.base_model.register_forward_hook(lambda _m, _a, out: hidden.append(out.last_hidden_state))
        try:
            outputs = fused_forward(*args, fused_lm_head=True, **kwargs)
        finally:
            hook.remove()
        return ActorCriticOutput(
            log_probs=outputs.log_probs,
            entropy=outputs.entropy,
            state_values=self.value_head(hidden[0][:, :-1]),
            aux_loss=outputs.aux_loss,
        )

    model.forward = types.MethodType(forward, model)
    return head


def save_value_head(head: ValueHead, folder: str) -> None:
    """Write the head beside the policy, as `value_head.safetensors`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in head.state_dict().items()}
    save_file(tensors, os.path.join(folder, VALUE_HEAD_FILE))


def load_value_head(head: ValueHead, folder: str) -> None:
    """
    Restore what [`save_value_head`] wrote.

    Raises:
        FileNotFoundError: If the folder holds no value head.
    """
    path = os.path.join(folder, VALUE_HEAD_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"The checkpoint `{folder}` has no `{VALUE_HEAD_FILE}`, so the critic cannot be restored. Resume from a "
            "checkpoint that PPOTrainer wrote, or start a new run from its weights by passing it as `model`."
        )
    head.load_state_dict(load_file(path))
