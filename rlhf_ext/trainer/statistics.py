"""Numbers that are logged: per-sequence tables of a rollout, running sums of an update."""

from typing import NamedTuple

import torch
from torch import Tensor

from ..functional import PolicyLoss, ValueLoss, k3, masked_sum
from ..kl_control import KLMeasurement
from ..rollout import Rollout

AT_MAX = 0.01
"""Spreads below the largest score within which a score counts as being at the maximum."""
OUTLIER = 3.0
"""Standard deviations above the mean of the reference completions beyond which a reward model's score is an outlier."""


class SequenceTable(NamedTuple):
    """One value per sequence and column, all `(B,)`; sequences that carry no token or score are not in it."""

    score: Tensor
    raw_score: Tensor
    kl: Tensor
    k3: Tensor
    ref_logprob: Tensor
    length: Tensor
    has_eos: Tensor

    def kl_measurement(self, unit: str | None) -> KLMeasurement:
        """KL to the reference, in nats per sequence, or nats per token with `unit="token"`."""
        per_token = unit == "token"
        values = self.kl / self.length if per_token else self.kl
        mean = self.kl.sum() / self.length.sum() if per_token else values.mean()
        return KLMeasurement(mean=mean.item(), std=values.std(correction=0).item(), num_sequences=len(values))

    def metrics(self, measures_kl: bool) -> dict[str, float]:
        """What is logged of the sequences of a rollout; without a reference there is no KL to it."""
        kl = {
            "kl/ref": self.kl.mean().item(),
            "kl/ref_se": self.kl_measurement("sequence").se,
            "kl/ref_token": (self.kl.sum() / self.length.sum()).item(),
            "kl/ref_k3": self.k3.mean().item(),
            "policy/reference_nll": -(self.ref_logprob.sum() / self.length.sum()).item(),
        }
        spread, top = self.score.std(correction=0), self.score.max()
        p10, p50, p90 = torch.quantile(self.length, self.length.new_tensor([0.1, 0.5, 0.9])).tolist()
        return {
            "objective/score": self.score.mean().item(),
            "objective/score_std": spread.item(),
            "objective/score_max": top.item(),
            "objective/score_at_max": (self.score >= top - AT_MAX * spread).double().mean().item(),
            "objective/score_raw": self.raw_score.mean().item(),
            **self._score_length_correlation(),
            **(kl if measures_kl else {}),
            "completions/length_p10": p10,
            "completions/length_p50": p50,
            "completions/length_p90": p90,
            "completions/eos_fraction": self.has_eos.mean().item(),
        }

    def _score_length_correlation(self) -> dict[str, float]:
        """Pearson's correlation, where both vary."""
        pair = torch.stack([self.score, self.length])
        if min(pair.std(dim=1, correction=0).tolist()) < 1e-9:
            return {}
        return {"objective/score_length_correlation": torch.corrcoef(pair)[0, 1].item()}


def reward_model_metrics(columns: list[tuple[Tensor, tuple[float, float] | None]]) -> dict[str, float]:
    """
    Signs that completions have left the ground on which the reward models were trained.

    Args:
        columns (`list[tuple]`):
            For each reward model its scores `(B,)`, and their mean and standard deviation on reference completions where
            these are known.

    Returns:
        `dict[str, float]`: of two or more models the spread over the same completion, mean over completions ([Coste et al.
        2023](https://huggingface.co/papers/2310.02743)); where the reference is known, the share of completions that a
        model scores far above it.
    """
    metrics = {}
    scaled = [(scores - mean) / std for scores, (mean, std) in ((s, n or (0.0, 1.0)) for s, n in columns)]
    if len(scaled) > 1:
        metrics["objective/reward_model_disagreement"] = torch.stack(scaled).std(dim=0, correction=0).mean().item()
    far = [scores > OUTLIER for scores, (_, known) in zip(scaled, columns, strict=True) if known is not None]
    if far:
        metrics["objective/reward_model_outliers"] = torch.stack(far).any(dim=0).double().mean().item()
    return metrics


class UpdateSums:
    """
    Sums over the micro-batches of one optimizer step, kept on the device so that only its end costs a synchronisation.
    """

    NAMES = ("kl/update", "policy/entropy", "policy/clip_fraction", "value/clip_fraction", "policy/loss", "value/loss")

    def __init__(self, device: torch.device) -> None:
        # The last one is the whole loss, which is only asked whether it is finite.
        self.sums = torch.zeros(len(self.NAMES) + 1, device=device)
        self.maxima = torch.zeros(2, device=device)

    def add(
        self,
        rollout: Rollout,
        logprobs: Tensor,
        entropies: Tensor,
        policy: PolicyLoss,
        value: ValueLoss,
        loss: Tensor,
        num_tokens: Tensor,
    ) -> None:
        """Add a micro-batch; the first four names are means per token, the losses are already shares of the step."""
        mask = rollout.completion_mask
        with torch.no_grad():
            # KL(old || new) is estimated on samples of the old policy, so the new one takes the reference's place.
            update_kl = k3(rollout.old_logprobs, logprobs)
            totals = [
                masked_sum(x, mask) for x in (update_kl, entropies, policy.clipped.float(), value.clipped.float())
            ]
            sums = torch.stack([*(t / num_tokens for t in totals), policy.loss, value.loss, loss])
            ratio = torch.where(mask, policy.ratio, 1.0)
            maxima = torch.stack([ratio.max(), (ratio - 1).abs().max()])
        self.sums = self.sums + sums
        self.maxima = torch.maximum(self.maxima, maxima)
