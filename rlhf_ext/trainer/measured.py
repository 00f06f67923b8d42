"""Everything that [`PPOTrainer`] measures and logs, apart from the algorithm."""

import math
import os
import time
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from torch import Tensor, nn
from trl import RLOOTrainer

from ..functional import explained_variance_from_moments, k1, k3, masked_moments, masked_sum, moments_to_mean_var
from ..models.scoring import RewardModelScorer
from ..rollout import Sequences
from .callbacks import DiagnosticsCallback
from .checks import check_first_pass
from .nonfinite import FOLDER, STEPS_TO_SPARE, dump_step, parameters_not_finite
from .statistics import SequenceTable, UpdateSums, reward_model_metrics

logger = get_logger(__name__)


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

    What differs from the parent: `training_step` measures the seconds of the update, and passes over what is left of one
    that has ended early; `_get_grad_norm` keeps a step whose loss or gradient is not finite from the weights.

    Attributes:
        diagnostics ([`DiagnosticsCallback`], *optional*):
            What watches the run; `None` with `diagnostics="off"`.
        update_kl_limit (`float`):
            Nats per token of `kl/update` after which no more steps are made on a rollout; infinite but for
            `diagnostics="act"`.
        ends_because (`str`, *optional*):
            Why the run ends once it has saved a checkpoint: too many steps were left out.
    """

    diagnostics: DiagnosticsCallback | None
    update_kl_limit = math.inf
    ends_because: str | None = None

    def _init_measurements(self) -> None:
        self._update_sums = UpdateSums(self.accelerator.device)
        self._rollout_seconds = 0.0
        self._update_seconds = 0.0
        # Whether the update on this rollout has ended early; and whether the present step is one of those passed over.
        self._update_is_over = self._is_passed_over = False
        self._is_broken = False
        self._steps_left_out = 0
        self.ends_because = None
        self._grad_norm: float | Tensor | None = None

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
        self._append(table.metrics(self._measures_kl))
        self._append(
            {
                "objective/reward": total_reward,
                "policy/advantage_std": moments_to_mean_var(residuals)[1].sqrt().item(),
                "value/explained_variance": explained_variance_from_moments(residuals, targets).item(),
                "value/return_variance": moments_to_mean_var(targets)[1].item(),
            }
        )
        means = masked_sum(advantages, mask, dim=1) / mask.sum(1).clamp(min=1)
        self._logs["advantages"].extend(self.accelerator.gather(means).tolist())

    def _log_scores(self, samples: Samples, gathered: Tensor, own: Tensor, nan_count: int) -> None:
        """Scores of each reward function, and the columns of the completions table."""
        self._logs["prompt"].extend(gather_object(samples.prompts))
        self._logs["completion"].extend(gather_object(samples.completions))
        mode = "train" if self.model.training else "eval"
        for name, column in zip(self.reward_func_names, gathered.unbind(1), strict=True):
            self._logs["rewards"][name].extend(column.tolist())
            if mode == "train":
                self._metrics[mode][f"rewards/{name}/mean"].append(column.nanmean().item())
        if mode == "train":
            not_a_number = self._reduce(torch.tensor(float(nan_count), device=own.device)).item()
            self._append({"objective/not_finite": not_a_number, **self._reward_model_metrics(gathered)})
        else:
            self._logs["advantages"].extend([0.0] * len(gathered))
            # One entry per sequence, without those repeated to fill up the last batch.
            columns = self.accelerator.gather_for_metrics(own).unbind(1)
            for name, column in zip(self.reward_func_names, columns, strict=True):
                self._metrics[mode][f"rewards/{name}/mean"].extend(column[~column.isnan()].tolist())
        self._flush_logs_of_reward_functions(mode, len(samples.prompts))

    def _reward_model_metrics(self, gathered: Tensor) -> dict[str, float]:
        """Of the reward models among the reward functions, where there are any."""
        columns = zip(gathered.unbind(1), self.reward_funcs, strict=True)
        return reward_model_metrics([(c, f.normalization) for c, f in columns if isinstance(f, RewardModelScorer)])

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
            masked_sum(ref, mask, dim=1),
            mask.sum(1),
            samples.has_eos,
        ]
        stacked = torch.stack([column.double() for column in columns], dim=1)
        gather = self.accelerator.gather if self.model.training else self.accelerator.gather_for_metrics
        table = SequenceTable(*gather(stacked).cpu().unbind(1))
        has_tokens = table.length > 0
        if not has_tokens.any():
            raise ValueError(
                "No completion of the rollout is left to learn from: all were truncated (mask_truncated_completions) or "
                "not scored. Raise max_completion_length or check the reward functions."
            )
        return SequenceTable(*(column[has_tokens] for column in table))

    def _compute_dtype(self) -> torch.dtype:
        autocast = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return autocast.get(self.accelerator.mixed_precision, self.accelerator.unwrap_model(self.model).dtype)

    def _finish_update_sums(self) -> None:
        sums = self._reduce(self._update_sums.sums).tolist()
        ratio_max, deviation = self.accelerator.gather(self._update_sums.maxima.view(1, 2)).amax(dim=0).tolist()
        self._update_sums = UpdateSums(self.accelerator.device)
        metrics = dict(zip(UpdateSums.NAMES, sums, strict=False))
        if not all(map(math.isfinite, sums)):
            self._on_broken_step(f"The loss is not finite ({metrics})", self._step)
            return
        self._update_is_over = metrics["kl/update"] > self.update_kl_limit
        self._append(metrics)
        name, train = "policy/ratio_max", self._metrics["train"]
        train[name] = [max([ratio_max, *train.get(name, [])])]
        if self._step % self._steps_per_rollout < self.current_gradient_accumulation_steps:
            self._append({"policy/first_pass_deviation": deviation})
            check_first_pass(deviation, self._compute_dtype())

    def _on_broken_step(self, what: str, last: int) -> None:
        """
        Write the present step to a file and leave it out; from the third on, the run then ends.

        Args:
            what (`str`): What is not finite, a sentence without its period.
            last (`int`): Number of the step's last micro-batch.
        """
        step, weights = self.state.global_step + 1, parameters_not_finite(self.model)
        place = self._dump_step(f"step-{step}-rank{self.args.process_index}", last, what, weights)
        damaged = self._reduce(torch.tensor(float(len(weights)), device=self.accelerator.device)).item()
        # The gradient scaler of fp16 takes no step left out, and DeepSpeed makes its own within the backward pass.
        if damaged or self.args.fp16 or self.is_deepspeed_enabled:
            why = f"The weights are not finite: {', '.join(weights[:3])}. " if weights else ""
            raise RuntimeError(
                f"{what} at step {step}. {why}Lower the learning rate, or look for NaN in the model's weights and in the "
                f"scores; the batch: {place}. The last checkpoint is untouched."
            )
        self._steps_left_out += 1
        self._is_broken = True
        # Of this rollout; there is none where a line was logged since.
        counts = self._metrics["train"]["objective/not_finite"]
        counts[-1:] = [sum(counts[-1:]) + 1]
        result = f"the step is left out; {STEPS_TO_SPARE - self._steps_left_out} more may be, before the run ends"
        if self._steps_left_out > STEPS_TO_SPARE:
            result = "the step is left out, and the run ends"
            folder = os.path.join(self.args.output_dir, FOLDER)
            self.ends_because = (
                f"{what} at step {step}, as at {STEPS_TO_SPARE} steps before, all left out. Look into the batches in "
                f"`{folder}`, lower learning_rate or max_grad_norm, and check the reward functions for extreme scores."
            )
        logger.warning(f"{what} at step {step}: {result}. The batch: {place}")
        if self.diagnostics is not None:
            self.diagnostics.note_left_out(step, what, result)

    def _dump_step(self, name: str, last: int, what: str, weights: list[str]) -> str:
        size = self.current_gradient_accumulation_steps
        first = last // size * size % self.args.steps_per_generation
        batches = self._buffered_inputs[first : first + size]
        return dump_step(os.path.join(self.args.output_dir, FOLDER), name, batches, what, weights, self._tokenizer)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        started = time.perf_counter()
        if self._step % self._steps_per_rollout == 0:
            self._update_is_over = False
        self._is_passed_over = self._update_is_over
        if self._is_passed_over:
            # What is logged goes by this flag, which a run that resumes here has not set yet.
            model.train()
            self._step += 1
            loss = torch.zeros((), device=self.accelerator.device)
        else:
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._update_seconds += time.perf_counter() - started - self._rollout_seconds
        self._rollout_seconds = 0.0
        if self._step % self._steps_per_rollout == 0:
            rate = self.optimizer.param_groups[-1]["lr"]
            self._append({"time/update": self._update_seconds, "value/learning_rate": rate})
            self._update_seconds = 0.0
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """Norm of the last step that was taken; without gradients, the optimizer leaves the weights alone."""
        if self._is_passed_over:
            return self._grad_norm
        norm = super()._get_grad_norm(model, grad_norm)
        # The gradient scaler of fp16 finds its scale by overflows, and passes over them itself.
        if not self._is_broken and norm is not None and not self.args.fp16 and not math.isfinite(norm):
            self._on_broken_step(f"The gradient is not finite (its norm is {float(norm)})", self._step - 1)
        if self._is_broken:
            self._is_broken = False
            model.zero_grad()
            return self._grad_norm
        self._grad_norm = norm
        return norm
