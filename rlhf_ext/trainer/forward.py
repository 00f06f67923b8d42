"""The models' outputs at the tokens of the completions."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..rollout import Sequences


class TokenOutputs(NamedTuple):
    """Outputs at the completion tokens, each `(B, C)`; the reference has only log-probabilities."""

    logprobs: Tensor
    entropies: Tensor = None  # type: ignore[assignment]
    values: Tensor = None  # type: ignore[assignment]
    aux_loss: Tensor | None = None


def completion_outputs(
    model: nn.Module,
    sequences: Sequences,
    rows: slice,
    takes_position_ids: bool,
    router_logits: bool,
    role: str | None,
) -> TokenOutputs:
    """
    One forward call of a model with TRL's fused head; outputs at the completion tokens of `rows`.

    `role` is one of those that [`~rlhf_ext.models.actor_critic.add_roles`] gave the policy, `None` for another model.
    """
    input_ids, mask = sequences.model_inputs(rows)
    length = sequences.completion_ids.size(1)
    labels = input_ids.masked_fill(~mask, -100)
    labels[:, :-length] = -100
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": mask.long(), "labels": labels}
    if takes_position_ids:
        # Absolute positions must not count the padding on the left, as generation does not (TRL #6800).
        inputs["position_ids"] = (mask.long().cumsum(1) - 1).clamp(min=0)
    if router_logits:
        inputs["output_router_logits"] = True
    outputs = model(**inputs, **({"fused_lm_head": True} if role is None else {"role": role}))
    logprobs = outputs.log_probs[:, -length:]
    if "state_values" not in outputs:
        return TokenOutputs(logprobs)
    entropies, values = outputs.entropy[:, -length:], outputs.state_values[:, -length:]
    return TokenOutputs(logprobs, entropies, values, outputs.aux_loss)


def in_chunks(forward: Callable[[slice], TokenOutputs], count: int, size: int) -> TokenOutputs:
    """Log-probabilities and values of `count` sequences, computed `size` at a time."""
    chunks = [forward(slice(i, i + size)) for i in range(0, count, size)]
    outputs = TokenOutputs(torch.cat([chunk.logprobs for chunk in chunks]))
    if chunks[0].values is None:
        return outputs
    return outputs._replace(values=torch.cat([chunk.values for chunk in chunks]))
