"""Everything that [`PPOTrainer`] measures and logs, apart from the algorithm."""

import time
from typing import Any, NamedTuple

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import RLOOTrainer

from ..functional import explained_variance_from_moments, k1, k3, masked_moments, masked_sum
from ..rollout import Sequences
from .checks import check_first_pass
from .statistics import SequenceTable, UpdateSums


class Samples(NamedTuple):
    """What one call of the generator gave."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]]
    sequences: Sequences
    has_eos: Tensor


class MeasuredTrainer(RLOOTrainer):
    """
    Metrics over all ranks: tables of a rollout's sequences, sums over an optimizer step, seconds of each phase.

    What differs from the parent: `training_step` measures the seconds of the update.
    """

    def _init_measurements(self) -> None:
        self._update_sums = UpdateSums(self.accelerator.device)
        self._rollout_seconds = 0.0
        self._update_seconds = 0.0

    @property
    def _steps_per_rollout(self) -> int:
        """Micro-batches between two rollouts."""
        return self.args.steps_per_generation * self.num_iterations

    def _append(self, metrics: dict[str, float]) -> None:
        for name, value in metrics.items():
            self._metrics["train"][name].append(value)

    def _reduce(self, tensor: Tensor) -> Tensor:
        return self.accelerator.reduce(tensor, reduction="sum")

    def _log_rollout(
        self,
        samples: Samples,
        table: SequenceTable,
        rewards: Tensor,
        values: Tensor,
        returns: Tensor,
        advantages: Tensor,
        mask: Tensor,
    ) -> None:
        residuals = self._reduce(masked_moments(returns - values, mask))
        targets = self._reduce(masked_moments(returns, mask))
        total_reward = self._reduce(masked_sum(rewards, mask)).item() / len(table.score)
        explained = explained_variance_from_moments(residuals, targets).item()
        self._append(table.metrics(self._measures_kl))
        self._append({"objective/reward": total_reward, "value/explained_variance": explained})
        means = masked_sum(advantages, mask, dim=1) / mask.sum(1).clamp(min=1)
        self._logs["advantages"].extend(self.accelerator.gather(means).tolist())

    def _log_scores(self, samples: Samples, gathered: Tensor, own: Tensor) -> None:
        """Mean score of each reward function, and the columns of the completions table."""
        self._logs["prompt"].extend(gather_object(samples.prompts))
        self._logs["completion"].extend(gather_object(samples.completions))
        mode = "train" if self.model.training else "eval"
        for name, column in zip(self.reward_func_names, gathered.unbind(1), strict=True):
            self._logs["rewards"][name].extend(column.tolist())
            if mode == "train":
                self._metrics[mode][f"rewards/{name}/mean"].append(column.nanmean().item())
        if mode == "eval":
            self._logs["advantages"].extend([0.0] * len(gathered))
            # One entry per sequence, without those repeated to fill up the last batch.
            columns = self.accelerator.gather_for_metrics(own).unbind(1)
            for name, column in zip(self.reward_func_names, columns, strict=True):
                self._metrics[mode][f"rewards/{name}/mean"].extend(column[~column.isnan()].tolist())
        self._flush_logs_of_reward_functions(mode, len(samples.prompts))

    def _flush_logs_of_reward_functions(self, mode: str, count: int) -> None:
        """What reward functions passed to TRL's `log_extra` and `log_metric`, gathered from all ranks."""
        # Sorted, so that every rank gathers the same name at the same time.
        for column in sorted(set(gather_object(list(self._pending_extra_logs)))):
            values = self._pending_extra_logs.get(column, [None] * count)
            self._logs["extra"][column].extend(gather_object(values))
        self._pending_extra_logs.clear()
        for name in sorted(set(gather_object(list(self._pending_metrics)))):
            values = self._pending_metrics.get(name, [])
            moments = torch.tensor([sum(values), len(values)], dtype=torch.float32, device=self.accelerator.device)
            total, number = self._reduce(moments).tolist()
            self._metrics[mode][name].append(total / number)
        self._pending_metrics.clear()

    def _sequence_table(
        self, samples: Samples, sequences: Sequences, scores: Tensor, raw: Tensor, logprobs: Tensor, ref: Tensor
    ) -> SequenceTable:
        mask = sequences.completion_mask
        columns = [
            scores,
            raw,
            masked_sum(k1(logprobs, ref), mask, dim=1),
            masked_sum(k3(logprobs, ref), mask, dim=1),
            mask.sum(1),
            samples.has_eos,
        ]
        table = torch.stack([column.double() for column in columns], dim=1)
        gather = self.accelerator.gather if self.model.training else self.accelerator.gather_for_metrics
        table = gather(table).cpu()
        table = table[table[:, 4] > 0]
        if not len(table):
            raise ValueError(
                "No completion of the rollout is left to learn from: all were truncated (mask_truncated_completions) or "
                "not scored. Raise max_completion_length or check the reward functions."
            )
        return SequenceTable(*table.unbind(1))

    def _compute_dtype(self) -> torch.dtype:
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return autocast.get(self.accelerator.mixed_precision, self.accelerator.unwrap_model(self.model).dtype)

    def _finish_update_sums(self) -> None:
        sums = self._reduce(self._update_sums.sums).tolist()
        ratio_max, deviation = self.accelerator.gather(self._update_sums.maxima.view(1, 2)).amax(dim=0).tolist()
        self._update_sums = UpdateSums(self.accelerator.device)
        metrics = dict(zip(UpdateSums.NAMES, sums, strict=False))
        if not all(map(torch.isfinite, torch.tensor(sums))):
            raise RuntimeError(
                f"The loss is not finite ({metrics}); the step is not taken. Lower the learning rate, or look for NaN in "
                "the model's weights and in the scores. The last checkpoint is untouched."
            )
        self._append(metrics)
        name, train = "policy/ratio_max", self._metrics["train"]
        train[name] = [max([ratio_max, *train.get(name, [])])]
        if self._step % self._steps_per_rollout < self.current_gradient_accumulation_steps:
            self._append({"policy/first_pass_deviation": deviation})
            check_first_pass(deviation, self._compute_dtype())

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        started = time.perf_counter()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._update_seconds += time.perf_counter() - started - self._rollout_seconds
        self._rollout_seconds = 0.0
        if self._step % self._steps_per_rollout == 0:
            self._append({"time/update": self._update_seconds})
            self._update_seconds = 0.0
        return loss
