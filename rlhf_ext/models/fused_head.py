"""TRL's fused LM head at the positions that have a label, on every device."""

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel


def at_labels(model: PreTrainedModel, forward: Callable[..., Any]) -> Callable[..., Any]:
    """
    A forward call whose fused head projects only the hidden states that have a label.

    TRL does so where it has Triton; elsewhere it projects every position, prompts and padding included, which for a small
    model with a large vocabulary is a quarter of a forward call, and in the backward pass more.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The model with TRL's fused head, without its PEFT or distributed wrapper.
        forward (`Callable`):
            Its forward call.

    Returns:
        `Callable`: as `forward`. The outputs of a call with `fused_lm_head=True` and `shift_labels` `(B, L)`, the token
        after each input or -100, are zero where there is no label. Into a list `states` that is passed it puts the trunk's
        last hidden states `(B, L, H)`, which the fused head keeps back.
    """

    @functools.wraps(forward)
    def forward_at_labels(
        *args: Any, shift_labels: Tensor | None = None, states: list[Tensor] | None = None, **kwargs: Any
    ) -> Any:
        if shift_labels is None or not kwargs.get("fused_lm_head"):
            return forward(*args, **kwargs if shift_labels is None else {**kwargs, "shift_labels": shift_labels})
        scored = shift_labels != -100
        handle = _hand_over(model.base_model, scored, [] if states is None else states)
        try:
            outputs = forward(*args, shift_labels=shift_labels[scored][None], **kwargs)
        finally:
            handle.remove()
        outputs.log_probs = _spread(outputs.log_probs, scored)
        outputs.entropy = _spread(outputs.entropy, scored)
        return outputs

    return forward_at_labels


def _hand_over(trunk: Any, scored: Tensor, states: list[Tensor]) -> RemovableHandle:
    """The trunk hands only the scored hidden states on to the head, as one row."""

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        hidden = output.last_hidden_state
        states.append(hidden)
        output.last_hidden_state = hidden[scored.to(hidden.device)][None]
        return output

    return trunk.register_forward_hook(hook)


def _spread(values: Tensor | None, scored: Tensor) -> Tensor | None:
    """Values of the scored positions, put back to where they belong; connected to the model also where there are none."""
    if values is None:
        return None
    scored = scored.to(values.device)
    return values.new_zeros(scored.shape).masked_scatter(scored, values)
