"""What really happens in a run: measured on held-out prompts, written to a file that no detector reads."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rlhf_ext.diagnostics.diversity import duplicate_fraction
from rlhf_ext.functional import apply_missing_eos_penalty, clip_scores, masked_sum
from rlhf_ext.models.scoring import RewardModelScorer
from rlhf_ext.rollout import Sequences

Gold = Callable[[list[str], list[str]], list[float]]
"""Gold scores of completions to prompts."""


class Notes(NamedTuple):
    """Completions that a policy wrote."""

    prompts: list[str]
    texts: list[str]
    ids: list[list[int]]
    sequences: Sequences


@torch.no_grad()
def write_notes(trainer: Any, prompts: list[str], samples: int, seed: int) -> Notes:
    """Completions of the policy as it is, `samples` a prompt, with randomness of their own."""
    tokenizer, args = trainer._tokenizer, trainer.args
    rows = [prompt for prompt in prompts for _ in range(samples)]
    inputs = tokenizer(rows, padding=True, padding_side="left", return_tensors="pt")
    was_training = trainer.model.training
    trainer.model.eval()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = trainer.model.generate(
            **inputs,
            **{
                "do_sample": True,
                "temperature": args.temperature,
                "top_k": 0,
                "max_new_tokens": args.max_completion_length,
                **(args.generation_kwargs or {}),
            },
        )
    trainer.model.train(was_training)
    completions = [_until_eos(ids, tokenizer) for ids in output[:, inputs["input_ids"].size(1) :].tolist()]
    prompt_ids = [
        ids[mask.bool()].tolist() for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
    sequences = Sequences.from_lists(prompt_ids, completions, tokenizer.pad_token_id, torch.device("cpu"))
    return Notes(rows, texts, completions, sequences)


def _until_eos(ids: list[int], tokenizer: Any) -> list[int]:
    return ids[: ids.index(tokenizer.eos_token_id) + 1] if tokenizer.eos_token_id in ids else ids


class Oracle:
    """
    Measures a run from outside.

    Args:
        trainer ([`PPOTrainer`]): The run.
        reference ([`~transformers.PreTrainedModel`]): A copy of the policy that it starts from.
        prompts (`list[str]`): Held-out prompts.
        samples (`int`): Completions of each.
        gold (`Callable`): Gold scores of completions.
        seed (`int`): Seed of the completions, the same at every measurement.
        asked_later (`Callable`, *optional*):
            Whether training asks for a prompt of that kind from half-way on, and before that for the others, where a
            curriculum changes them. A critic is to foresee what training asks now.
    """

    def __init__(
        self,
        trainer: Any,
        reference: Any,
        prompts: list[str],
        samples: int,
        gold: Gold,
        seed: int,
        asked_later: Callable[[str], bool] | None = None,
    ) -> None:
        self.trainer = trainer
        self.reference = reference.eval()
        self.prompts = prompts
        self.samples = samples
        self.gold = gold
        self.seed = seed
        self.asked_later = asked_later
        self.shift, self.unit = (float(x[0]) for x in trainer._score_affine)

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """One row of the oracle's file; all but the scores and the critic's are known to nobody in the run."""
        notes = write_notes(self.trainer, self.prompts, self.samples, self.seed)
        mask = notes.sequences.completion_mask
        kl, entropy, surprise, sampled_kl = (masked_sum(x, mask, dim=1) for x in self._full_distribution(notes))
        golds, length = np.array(self.gold(notes.prompts, notes.texts)), mask.sum(1)
        row = {
            "gold": golds.mean(),
            "gold_sd": golds.std(),
            "kl": kl.mean(),
            "entropy": entropy.sum() / length.sum(),
            "reference_nll": surprise.sum() / length.sum(),
            "duplicates": duplicate_fraction(notes.prompts, notes.texts),
            "length": length.float().mean(),
            **self._critic(notes, sampled_kl),
        }
        return {name: float(value) for name, value in row.items()}

    def _full_distribution(self, notes: Notes) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Exact KL, entropy, the reference's surprise and the KL of the token at each completion position, `(B, C)`."""
        ids, mask = notes.sequences.model_inputs(slice(None))
        length = notes.sequences.completion_ids.size(1)
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)
        policy, reference = (
            (model(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits[:, -length - 1 : -1] / t)
            .log_softmax(-1)
            .double()
            for model, t in ((self.trainer.model, self.trainer.args.temperature), (self.reference, 1.0))
        )
        p = policy.exp()
        log_ratio = policy - reference
        tokens = notes.sequences.completion_ids.unsqueeze(-1)
        taken, taken_ratio = (x.gather(-1, tokens).squeeze(-1) for x in (reference, log_ratio))
        return (p * log_ratio).sum(-1), -(p * policy).sum(-1), -taken, taken_ratio

    def _critic(self, notes: Notes, kl: Tensor) -> dict[str, float]:
        """
        Mean score by the run's own reward before anything rescaled it, and how well the critic foresees Monte-Carlo
        returns of the scores that training sees now: `mc_ev = 1 - var(R - V) / var(R)`, and
        `mc_r2 = 1 - mean((R - V)^2) / var(R)`, which a wrong level costs. `score_sd` is the spread of those scores in
        the units of the start; without any there is nothing to foresee. `reliability` is the correlation of two scorings of
        the same notes; what it lacks, nobody can foresee.
        """
        trainer = self.trainer
        raw = self._raw_scores(notes)
        scores = (raw - self.shift) / self.unit
        outputs = trainer._forward_in_chunks(trainer.model, notes.sequences)
        beta = trainer.kl_controller.beta if trainer.kl_controller is not None else 0.0
        mask = notes.sequences.completion_mask & self._asked_now(notes).unsqueeze(1)
        trained = self._trained_scores(raw, notes)
        returns = (trained - beta * kl.float()).unsqueeze(1).expand_as(outputs.values)[mask]
        errors = returns - outputs.values[mask]
        variance = returns.var().clamp(min=1e-6)
        return {
            "proxy": scores.mean(),
            "score_sd": trained.std() * float(trainer._score_affine[1][0]) / self.unit,
            "reliability": self._reliability(notes, scores),
            "mc_ev": 1 - errors.var() / variance,
            "mc_r2": 1 - errors.square().mean() / variance,
        }

    def _asked_now(self, notes: Notes) -> Tensor:
        """Whether a note answers a prompt of the kind that training asks now, of shape `(B,)`."""
        if self.asked_later is None:
            return torch.ones(len(notes.prompts), dtype=torch.bool)
        state = self.trainer.state
        is_late = state.global_step >= state.max_steps / 2
        return torch.tensor([self.asked_later(prompt) == is_late for prompt in notes.prompts])

    def _reliability(self, notes: Notes, scores: Tensor) -> float:
        if isinstance(self.trainer.reward_funcs[0], RewardModelScorer):  # Says the same of the same.
            return float(scores.std() > 0)
        return correlation(scores, (self._raw_scores(notes) - self.shift) / self.unit) or 0.0

    def _raw_scores(self, notes: Notes) -> Tensor:
        """What the run's own reward says."""
        function: Callable[..., list[float]] = self.trainer.reward_funcs[0]
        raw = torch.tensor(function(prompts=notes.prompts, completions=notes.texts, completion_ids=notes.ids))
        return raw.nan_to_num(nan=raw.nanmean().item())

    def _trained_scores(self, raw: Tensor, notes: Notes) -> Tensor:
        """The scores as training takes them at this time: rescaled, less for a note that does not end, and clipped."""
        args, (shift, unit) = self.trainer.args, self.trainer._score_affine
        scores = (raw - float(shift[0])) / float(unit[0])
        if args.missing_eos_penalty:
            ends = torch.tensor([ids[-1:] == [self.trainer._tokenizer.eos_token_id] for ids in notes.ids])
            scores = apply_missing_eos_penalty(scores, ends, args.missing_eos_penalty)
        return scores if args.score_clip is None else clip_scores(scores, args.score_clip)


def correlation(x: Tensor, y: Tensor) -> float | None:
    """Pearson correlation; `None` where one of the two does not vary."""
    if len(x) < 2 or x.std() < 1e-9 or y.std() < 1e-9:
        return None
    return float(torch.corrcoef(torch.stack([x, y]))[0, 1])
