"""The record of each rollout, from the trainer's log and from the rollout itself."""

import math
from typing import Any

from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState

from rlhf_ext import PPOTrainer
from rlhf_ext.diagnostics import RunSettings
from rlhf_ext.diagnostics.keys.ours import OURS
from rlhf_ext.functional import masked_moments, moments_to_mean_var

from .oracle import Oracle, correlation, text_extras, write_notes

ORACLE_EVERY = 4
# 16 notes every 5 rollouts of 64: 5 % of the tokens.
QUALITY_EVERY = 5


class LabTrainer(PPOTrainer):
    """PPO that keeps what a record holds beside the log. Differs from the parent in `_log_rollout` alone."""

    def _log_rollout(
        self,
        samples: Any,
        table: Any,
        rewards: Tensor,
        values: Tensor,
        returns: Tensor,
        advantages: Tensor,
        mask: Tensor,
    ) -> None:
        super()._log_rollout(samples, table, rewards, values, returns, advantages, mask)
        _, return_var = moments_to_mean_var(masked_moments(returns, mask))
        _, advantage_var = moments_to_mean_var(masked_moments(returns - values, mask))
        scores = [
            score for column in self._logs["rewards"].values() for score in list(column)[-len(samples.prompts) :]
        ]
        self.rollout_extras = {
            "score_max": table.score.max().item(),
            "kl_se": table.kl_measurement("sequence").se,
            "score_len_corr": correlation(table.score, table.length),
            "return_var": return_var.item(),
            "adv_std": advantage_var.sqrt().item(),
            "nonfinite": sum(not math.isfinite(score) for score in scores),
            **text_extras(samples.prompts, samples.completions),
        }


class Recorder(TrainerCallback):
    """
    Keeps the records and the oracle's rows of a run, apart from each other.

    Args:
        probe (`list[Request]`): Requests of the quality probe.
        seed (`int`): Seed of the notes on it.
    """

    def __init__(self, probe: list[Any], seed: int) -> None:
        self.probe = probe
        self.seed = seed
        self.records: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        self.trainer: Any = None
        self.oracle: Any = None

    def attach(self, trainer: LabTrainer, oracle: Oracle) -> None:
        """Watch this trainer from now on."""
        self.trainer, self.oracle = trainer, oracle
        trainer.add_callback(self)
        if not self.outcomes:
            self.outcomes.append({"rollout": 0, **self.oracle.measure()})

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """A rollout is over: its log line, and what the rollout kept."""
        if not logs or "objective/score" not in logs:
            return
        rollout = len(self.records) + 1
        values = {name: logs[key] for name, (key, *_) in OURS.keys.items() if key in logs}
        values |= self.trainer.rollout_extras
        if "kl/target" in logs:
            values["kl_target"] = logs["kl/target"]
        values["lr_critic"] = self.trainer.optimizer.param_groups[-1]["lr"]
        if rollout % QUALITY_EVERY == 0 or rollout == 1:
            values["quality"] = float(write_notes(self.trainer, self.probe, 1, self.seed + rollout).gold().mean())
        self.records.append({"step": state.global_step, **_rounded(values)})
        if rollout % ORACLE_EVERY == 0 or rollout == 1:
            self.outcomes.append({"rollout": rollout, "step": state.global_step, **self.oracle.measure()})


def _rounded(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items() if value is not None}


def run_settings(args: Any, rollouts: int) -> RunSettings:
    """What a user's run would tell the diagnostics of itself."""
    return RunSettings(
        planned_rollouts=rollouts,
        kl_target=args.kl_target,
        kl_unit=args.kl_unit,
        kl_controller=args.kl_controller,
        beta=None if isinstance(args.beta, str) else args.beta,
        num_epochs=args.num_iterations,
        rollout_size=args.generation_batch_size,
        max_completion_length=args.max_completion_length,
        epsilon=args.epsilon,
        learning_rate=args.learning_rate,
        critic_learning_rate=args.critic_learning_rate or args.learning_rate,
        critic_warmup_rollouts=args.critic_warmup_rollouts,
        max_grad_norm=args.max_grad_norm,
        entropy_coef=args.entropy_coef,
        value_clip_range=math.inf if args.value_clip_range is None else args.value_clip_range,
        score_clip=math.inf if args.score_clip is None else args.score_clip,
        missing_eos_penalty=args.missing_eos_penalty or 0.0,
        temperature=args.temperature,
        dtype="float32",
    )
