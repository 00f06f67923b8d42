"""A held-out quality that training does not see, measured on the same prompts every few rollouts."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from accelerate.utils import gather_object
from trl.trainer.utils import get_callable_name, is_async_callable

from ..diagnostics import Sample
from ..diagnostics.diversity import text_metrics
from .callbacks import answer_text, plain_text
from .ppo_config import PPOConfig
from .reward_functions import ScoreCheck

SHARE = 0.05
"""Of the rollouts' completions, what a probe may cost unless told otherwise."""
FEWEST, OFTEN = 16, 5
"""Completions below which a mean says little, and rollouts between two probes where a probe has that many."""


def check_probe(quality_fn: Any, eval_dataset: Any, args: PPOConfig) -> None:
    """
    Refuse a probe that cannot work, before a model is loaded.

    Raises:
        TypeError: If `quality_fn` is not a plain function.
        ValueError: If there are no held-out prompts.
    """
    if not wants_probe(quality_fn, args):
        return
    is_plain = (
        callable(quality_fn) and not isinstance(quality_fn, torch.nn.Module) and not is_async_callable(quality_fn)
    )
    if quality_fn is not None and not is_plain:
        raise TypeError(
            f"`quality_fn` must be a plain Python function like a reward function, got {quality_fn!r}. Wrap a model in one."
        )
    if eval_dataset is None:
        raise ValueError("A probe samples answers to held-out prompts: pass them as `eval_dataset`.")
    prompts = sum(1 for _ in islice(iter(held_out(eval_dataset)), args.world_size))
    if prompts < args.world_size:
        raise ValueError(
            f"`eval_dataset` has {prompts} prompts; a probe needs one for each of the {args.world_size} processes. Pass "
            "more."
        )


def held_out(eval_dataset: Any) -> Any:
    """The prompts of a probe: of several datasets the first."""
    return next(iter(eval_dataset.values())) if isinstance(eval_dataset, dict) else eval_dataset


def wants_probe(quality_fn: Any, args: PPOConfig) -> bool:
    """Whether the run has a probe: of the quality, or of the diversity alone."""
    return quality_fn is not None or args.probe_every is not None or args.probe_size is not None


class Probe:
    """
    Samples answers to a fixed set of held-out prompts, looks at their diversity and has them judged, with the same random
    numbers each time and without touching those of the training.

    Args:
        quality_fn (`Callable`, *optional*):
            `(prompts, completions, completion_ids, **columns) -> list[float | None]`, as a reward function of TRL; higher
            is better. Training never sees it.
        rows (iterable of `dict`):
            Held-out prompts with their other columns; as many as are needed are taken from its beginning.
        args ([`PPOConfig`]):
            Settings.

    Attributes:
        every (`int`): Rollouts between two probes; the first rollout is probed.
        answers (`list[Sample]`): This process's part of the last probe that nobody has taken yet.
        size (`int`): Completions of a probe, on all processes together.
    """

    def __init__(self, quality_fn: Callable[..., Any] | None, rows: Any, args: PPOConfig) -> None:
        rollout, world, generations = args.generation_batch_size, args.world_size, args.num_generations_eval
        # Every process and every prompt must have the same number of completions.
        unit = world * generations
        self.every = args.probe_every or max(OFTEN, math.ceil(max(FEWEST, unit) / (SHARE * rollout)))
        wanted = args.probe_size or int(SHARE * self.every * rollout)
        self.size = max(wanted // unit, 1) * unit
        self.rows = [dict(row) for row in islice(iter(rows), self.size // generations) for _ in range(generations)]
        self.size = len(self.rows) // unit * unit
        self.rows = self.rows[args.process_index * (self.size // world) :][: self.size // world]
        self.answers: list[Sample] = []
        self.quality_fn = quality_fn
        self.seed = args.seed + args.process_index

    def measure(self, trainer: Any, rollout_tokens: float) -> dict[str, float]:
        """
        Probe the policy as it is.

        Args:
            trainer ([`PPOTrainer`]): The trainer.
            rollout_tokens (`float`): Completion tokens of the present rollout.

        Returns:
            `dict[str, float]`: the quality, what the completions are like, and what it cost.
        """
        started = time.perf_counter()
        prompts = [row["prompt"] for row in self.rows]
        with _apart_from_training(trainer, self.seed):
            _, completion_ids, completions = trainer._generate(prompts)
            judged = self._judged(prompts, completions, completion_ids)
        self.answers = [
            Sample(plain_text(p), plain_text(c), score)
            for p, c, score in zip(prompts, completions, judged, strict=True)
        ]
        values = [value for value in judged if value is not None]
        sums = torch.tensor([sum(values), len(values), sum(map(len, completion_ids))], dtype=torch.float32)
        total, count, tokens = trainer._reduce(sums.to(trainer.accelerator.device)).tolist()
        texts = [list(map(plain_text, prompts)), list(map(answer_text, completions))]
        found = text_metrics(*map(gather_object, texts))
        return {
            **({"probe/quality": total / count} if count else {}),
            "probe/duplicate_fraction": found["dup_frac"],
            **({"probe/distinct_2": found["distinct2"]} if "distinct2" in found else {}),
            "probe/mean_length": tokens / self.size,
            "probe/token_share": tokens / (self.every * rollout_tokens),
            "time/probe": time.perf_counter() - started,
        }

    def _judged(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]
    ) -> list[float | None]:
        """A judgement of each answer; `None` where there is none."""
        if self.quality_fn is None:
            return [None] * len(prompts)
        columns = {k: [row[k] for row in self.rows] for k in self.rows[0] if k not in ("prompt", "completion")}
        judge = ScoreCheck().wrap(self.quality_fn, get_callable_name(self.quality_fn))
        judged = judge(prompts=prompts, completions=completions, completion_ids=completion_ids, **columns)
        if len(judged) != len(prompts):
            raise ValueError(
                f"`quality_fn` returned {len(judged)} values for {len(prompts)} completions; it must return one for each."
            )
        return [None if value is None else float(value) for value in judged]


@contextmanager
def _apart_from_training(trainer: Any, seed: int) -> Iterator[None]:
    """Evaluation mode, random numbers of its own, and no trace in the metrics of an evaluation."""
    metrics = trainer._metrics["eval"]
    kept = {name: list(values) for name, values in metrics.items()}
    trainer.model.eval()
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        trainer.model.train()
        metrics.clear()
        metrics.update(kept)
