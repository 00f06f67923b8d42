"""The record of each rollout, from the trainer's log and from the rollout itself."""

from statistics import fmean
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from rlhf_ext import PPOTrainer
from rlhf_ext.diagnostics.diversity import text_metrics
from rlhf_ext.diagnostics.keys.ours import OURS

from .oracle import Gold, Oracle, write_notes

# 16 notes every 5 rollouts of 64: 5 % of the tokens.
QUALITY_EVERY = 5


class Recorder(TrainerCallback):
    """
    Keeps the records and the oracle's rows of a run, apart from each other.

    Args:
        probe (`list[str]`): Prompts of the quality probe.
        gold (`Callable`): Gold scores of completions.
        oracle_every (`int`): Rollouts between two measurements of the oracle.
        seed (`int`): Seed of the completions on the probe.
    """

    def __init__(self, probe: list[str], gold: Gold, oracle_every: int, seed: int) -> None:
        self.probe = probe
        self.gold = gold
        self.oracle_every = oracle_every
        self.seed = seed
        self.records: list[dict[str, Any]] = []
        self.outcomes: list[dict[str, Any]] = []
        self.trainer: Any = None
        self.oracle: Any = None

    def attach(self, trainer: PPOTrainer, oracle: Oracle) -> None:
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
        values |= text_metrics(self.trainer._logs["prompt"], self.trainer._logs["completion"])
        if "kl/target" in logs:
            values["kl_target"] = logs["kl/target"]
        values["lr_critic"] = self.trainer.optimizer.param_groups[-1]["lr"]
        if rollout % QUALITY_EVERY == 0 or rollout == 1:
            notes = write_notes(self.trainer, self.probe, 1, self.seed + rollout)
            values["quality"] = fmean(self.gold(notes.prompts, notes.texts))
            found = text_metrics(notes.prompts, notes.texts)
            values |= {f"probe_{name}": found[name] for name in ("dup_frac", "distinct2") if name in found}
        self.records.append({"step": state.global_step, **_rounded(values)})
        if rollout % self.oracle_every == 0 or rollout == 1:
            self.outcomes.append({"rollout": rollout, "step": state.global_step, **self.oracle.measure()})

    def finish(self) -> None:
        """One more row of the oracle, of the policy that a run is left with."""
        self.outcomes.append({"rollout": len(self.records), "final": True, **self.oracle.measure()})


def _rounded(values: dict[str, Any]) -> dict[str, float]:
    return {name: float(f"{value:.4g}") for name, value in values.items() if value is not None}
