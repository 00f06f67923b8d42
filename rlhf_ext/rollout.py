"""What crosses the seam between collecting and updating."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """
    Prompts padded on the left and completions padded on the right, so that every completion starts at the same column.

    Args:
        prompt_ids (`torch.Tensor` of shape `(B, P)`):
            Prompt tokens.
        prompt_mask (`torch.Tensor` of shape `(B, P)`, bool):
            `True` at real tokens.
        completion_ids (`torch.Tensor` of shape `(B, C)`):
            Sampled tokens, EOS included.
        completion_mask (`torch.Tensor` of shape `(B, C)`, bool):
            `True` at real tokens. A row without any is left out of the update.
    """

    prompt_ids: Tensor
    prompt_mask: Tensor
    completion_ids: Tensor
    completion_mask: Tensor

    @classmethod
    def from_lists(
        cls,
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        pad_token_id: int,
        device: torch.device | str = "cpu",
    ) -> "Sequences":
        """Pad lists of token ids, taking the masks from the lengths and never from the ids (pad may equal EOS)."""
        prompts, prompt_mask = _pad(prompt_ids, pad_token_id, left=True)
        completions, completion_mask = _pad(completion_ids, pad_token_id, left=False)
        tensors = (prompts, prompt_mask, completions, completion_mask)
        return cls(*(tensor.to(device) for tensor in tensors))

    def model_inputs(self, rows: slice | Tensor) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask `(b, P + C)` of some rows."""
        ids = torch.cat([self.prompt_ids[rows], self.completion_ids[rows]], dim=1)
        mask = torch.cat([self.prompt_mask[rows], self.completion_mask[rows]], dim=1)
        return ids, mask


@dataclass(frozen=True)
class Rollout(Sequences):
    """
    What the rollout policy produced and the update reads. Nothing in it is recomputed later.

    Args:
        old_logprobs (`torch.Tensor` of shape `(B, C)`):
            Log-probabilities of the sampled tokens under the rollout policy, at the sampling temperature, in nats.
        old_values (`torch.Tensor` of shape `(B, C)`):
            Critic's value of the state before each token, in units of the score.
        advantages (`torch.Tensor` of shape `(B, C)`):
            Generalised advantages, whitened over the whole rollout unless that is switched off.
        returns (`torch.Tensor` of shape `(B, C)`):
            Targets of the critic.
    """

    old_logprobs: Tensor
    old_values: Tensor
    advantages: Tensor
    returns: Tensor


def _pad(rows: Sequence[Sequence[int]], value: int, left: bool) -> tuple[Tensor, Tensor]:
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), value, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if left else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = True
    return ids, mask
