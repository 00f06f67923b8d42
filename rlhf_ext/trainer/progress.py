"""What is shown of a run while it trains: the numbers of its latest rollout instead of a line per log."""

from typing import Any

from transformers import (
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

Logs = dict[str, Any]

SCORE, TARGET, BETA, ENTROPY, CRITIC = (
    "objective/score",
    "kl/target",
    "kl/beta",
    "policy/entropy",
    "value/explained_variance",
)
"""Names in the log, docs/metrics.md."""


def show_rollouts(trainer: Trainer) -> None:
    """
    Put a display of rollouts in the place of the one that a trainer has by default: a progress bar with four numbers, or
    in a notebook one table with small plots. With `disable_tqdm=True` every log stays a printed line, and a display that
    the user passed stays too.

    The display in a notebook takes the notices of the diagnostics too.
    """
    for shown in trainer.callback_handler.callbacks:
        if type(shown) is ProgressCallback:
            replacement: TrainerCallback = RolloutProgressCallback()
        elif type(shown).__name__ == "NotebookProgressCallback":
            # It and its parent import IPython.
            from .notebook import NotebookRolloutsCallback

            replacement = notebook = NotebookRolloutsCallback()
            if (diagnostics := getattr(trainer, "diagnostics", None)) is not None:
                diagnostics.say = notebook.say
        else:
            continue
        trainer.remove_callback(shown)
        trainer.add_callback(replacement)
        return


def kl_name(args: TrainingArguments) -> str:
    """The KL to the reference in the unit of the target."""
    return "kl/ref_token" if getattr(args, "kl_unit", None) == "token" else "kl/ref"


def four_numbers(logs: Logs, kl: str) -> dict[str, str]:
    """
    Score, KL (beside its target), entropy and explained variance of a rollout, as text; those that the log lacks
    (a constant score has no variance to explain) are left out.

    Args:
        logs (`dict`): A row of the log.
        kl (`str`): Name of the KL, [`kl_name`].
    """
    numbers = {"score": f"{logs[SCORE]:+.3g}"}
    if kl in logs:
        numbers["kl"] = f"{logs[kl]:.3g}" + (f"/{logs[TARGET]:.3g}" if TARGET in logs else "")
    for short, name in (("entropy", ENTROPY), ("critic", CRITIC)):
        if logs.get(name) is not None:
            numbers[short] = f"{logs[name]:.3g}"
    return numbers


def evaluation_line(metrics: Logs) -> str:
    """The numbers of an evaluation in a line."""
    names = ("objective/score", "kl/ref", "completions/eos_fraction", "completions/mean_length")
    prefix = next((key.removesuffix(SCORE) for key in metrics if key.endswith(SCORE)), "eval_")
    return ", ".join(f"{prefix}{name} {metrics[prefix + name]:.4g}" for name in names if prefix + name in metrics)


class RolloutProgressCallback(ProgressCallback):
    """
    A progress bar over optimizer steps that carries score, KL against its target, entropy and the critic's explained
    variance of the latest rollout. Evaluations are a line above it. All that is logged is in `trainer.state.log_history`
    and in every tracker.
    """

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the row, if it is a rollout's or an evaluation's."""
        if self.training_bar is None or not logs:
            return
        if SCORE in logs:
            self.training_bar.set_postfix(four_numbers(logs, kl_name(args)))
        elif line := evaluation_line(logs):
            self.training_bar.write(f"step {state.global_step}: {line}")
