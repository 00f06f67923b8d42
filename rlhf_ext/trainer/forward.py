"""The models' outputs at the tokens of the completions."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import trl.trainer.utils
from torch import Tensor, nn
from trl.kernels import ChunkedLogProbFunction

from ..models.cpu_head import TILE_WORDS, TokenLogProbs
from ..rollout import Sequences


class TokenOutputs(NamedTuple):
    """Outputs at the completion tokens, each `(B, C)`; the reference has only log-probabilities, a critic only values."""

    logprobs: Tensor = None  # type: ignore[assignment]
    entropies: Tensor = None  # type: ignore[assignment]
    values: Tensor = None  # type: ignore[assignment]
    aux_loss: Tensor | None = None


def completion_outputs(
    model: nn.Module,
    sequences: Sequences,
    rows: slice | Tensor,
    router_logits: bool,
    role: str | None,
) -> TokenOutputs:
    """
    One forward call of a model with TRL's fused head; outputs at the completion tokens of `rows`, zero after their end.

    Every row starts at the first column, so that the call is as wide as its longest row, not as its longest prompt and its
    longest completion together, and absolute positions count as they do in generation, without padding (TRL #6800).

    `role` is one of those that [`~rlhf_ext.models.actor_critic.add_roles`] gave the policy, `None` for another model.
    """
    ids, mask = sequences.model_inputs(rows)
    starts = sequences.prompt_mask[rows].sum(1, keepdim=True)
    length = sequences.completion_ids.size(1)
    width = max(int(mask.sum(1).max()), 2)
    # Real tokens first, in their order; a left-out completion may leave its tokens behind as padding.
    source = mask.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    input_ids, mask = ids.gather(1, source), mask.gather(1, source)
    labels = input_ids.masked_fill(~mask | (torch.arange(width, device=ids.device) < starts), -100)
    # Nothing is asked after the last token, which is fed only where its choice of experts counts in the loss.
    labels, fed = nn.functional.pad(labels[:, 1:], (0, 1), value=-100), width if router_logits else width - 1
    columns = {"input_ids": input_ids, "attention_mask": mask.long(), "shift_labels": labels}
    inputs: dict[str, Any] = {name: column[:, :fed] for name, column in columns.items()}
    if router_logits:
        inputs["output_router_logits"] = True
    with cpu_head(ids.device):
        outputs = model(**inputs, **({"fused_lm_head": True} if role is None else {"role": role}))
    # The output that belongs to a token is that at the token before it; those after the end are no one's.
    places = starts - 1 + torch.arange(length, device=ids.device)
    places = places.clamp(max=width - 2)
    is_token = sequences.completion_mask[rows]

    def at_completions(x: Tensor) -> Tensor:
        return x.gather(1, places.to(x.device)).masked_fill(~is_token.to(x.device), 0)

    names = {"logprobs": "log_probs", "entropies": "entropy", "values": "state_values"}
    found = {name: at_completions(outputs[key]) for name, key in names.items() if key in outputs}
    return TokenOutputs(**found, aux_loss=outputs.get("aux_loss"))


@contextmanager
def cpu_head(device: torch.device) -> Iterator[None]:
    """On a CPU, TRL's fused head, which is written for a GPU, computes by [`TokenLogProbs`]."""
    names, name = vars(trl.trainer.utils), "_ChunkedLogProbFunction"
    before = names[name]
    if device.type == "cpu":
        names[name] = _CPUHead
    try:
        yield
    finally:
        names[name] = before


class _CPUHead:
    """Called as TRL's function."""

    @staticmethod
    def apply(
        hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, temperature: float, _tile: int,
        softcap: float | None, logit_scale: float, outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:  # fmt: skip
        is_float32 = hidden.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        # ZeRO-3 has the weight only inside TRL's own passes.
        is_plain = bias is None and softcap is None and not hasattr(weight, "ds_id")
        if is_float32 and is_plain and set(outputs) <= {"log_probs", "entropy"}:
            logprobs, entropies = TokenLogProbs.apply(hidden, weight, targets, logit_scale / temperature)
            return logprobs, entropies, None, None, None
        return ChunkedLogProbFunction.apply(
            hidden, weight, bias, targets, temperature, TILE_WORDS, softcap, logit_scale, outputs
        )


def in_chunks(forward: Callable[[Tensor], TokenOutputs], sequences: Sequences, size: int) -> TokenOutputs:
    """Log-probabilities and values of all sequences, computed `size` at a time, those of similar length together."""
    order = by_length(vars(sequences))
    back = order.argsort()
    chunks = [forward(rows) for rows in order.split(size)]
    names = [name for name in ("logprobs", "values") if getattr(chunks[0], name) is not None]
    return TokenOutputs(**{name: torch.cat([getattr(chunk, name) for chunk in chunks])[back] for name in names})


def by_length(sequences: Mapping[str, Tensor]) -> Tensor:
    """Row numbers `(B,)` in the order of their length, prompt and completion together."""
    lengths = sequences["prompt_mask"].sum(1) + sequences["completion_mask"].sum(1)
    return lengths.argsort(stable=True)


def group_by_length(batches: list[dict[str, Tensor]], steps: int) -> list[dict[str, Tensor]]:
    """
    The same micro-batches with rows exchanged among those of one optimizer step, so that rows of similar length are
    together and little of a forward call is padding. The step's gradient is a sum over its rows, whatever their order.

    Args:
        batches (`list[dict[str, torch.Tensor]]`):
            Micro-batches of a rollout, of equal size.
        steps (`int`):
            Micro-batches of one optimizer step.
    """
    if steps == 1:
        return batches
    grouped = []
    for start in range(0, len(batches), steps):
        step = batches[start : start + steps]
        rows = {name: torch.cat([batch[name] for batch in step]) for name in step[0]}
        for indices in by_length(rows).chunk(len(step)):
            grouped.append({name: column[indices] for name, column in rows.items()})
    return grouped


def parts_of(batch: dict[str, Tensor], most: int) -> list[dict[str, Tensor]]:
    """
    A micro-batch in parts of at most so many tokens, padding included, but of at least one row; rows of similar length
    are together. The loss is a sum over its rows, whichever are computed together.

    Args:
        batch (`dict[str, torch.Tensor]`):
            Columns of a rollout's rows.
        most (`int`):
            Tokens of a part.
    """
    order, parts = by_length(batch), []
    lengths = (batch["prompt_mask"].sum(1) + batch["completion_mask"].sum(1))[order].tolist()
    while lengths:
        size = min(max(most // max(lengths[-1], 1), 1), len(lengths))
        parts.append(order[len(lengths) - size : len(lengths)])
        del lengths[-size:]
    return [batch] if len(parts) == 1 else [{name: x[rows] for name, x in batch.items()} for rows in parts]
