"""A run in a notebook: what was found, one table of its latest rollouts, and small plots."""

import logging
import math
from html import escape
from typing import Any

from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils.notebook import NotebookProgressCallback, NotebookTrainingTracker, html_progress_bar

from ..diagnostics.plots import plot
from .callbacks import Notice, log_notice
from .progress import BETA, CRITIC, ENTROPY, SCORE, TARGET, Logs, evaluation_line, kl_name

SHOWN_ROWS = 8
STYLE = """<style>
.rollouts { display: grid; grid-template-columns: repeat(auto-fit, minmax(240px, 1fr)); gap: 8px; max-width: 1100px; }
.rollouts figcaption { font-size: 12px; } .rollouts figure { margin: 0; }
.rollouts svg { width: 100%; height: auto; }
.rollouts .grid { stroke: #8884; } .rollouts .tick { fill: #888; font-size: 14px; }
.rollouts .curve { fill: none; stroke: #2563a8; stroke-width: 2.4; } .rollouts .point { fill: #2563a8; }
.rollouts .target { stroke: #c0392b; stroke-dasharray: 5 4; } .rollouts .lost { stroke: #c0392b; stroke-width: 3; }
</style>"""


class RolloutsTracker(NotebookTrainingTracker):
    """
    The progress bar, the findings, the table and the plots, in one output that is updated in place.

    Args:
        num_steps (`int`): Optimizer steps of the run.
        kl (`str`): Name of the KL in the unit of its target.
    """

    def __init__(self, num_steps: int, kl: str) -> None:
        super().__init__(num_steps)
        self.output: Any = None
        self.kl = kl
        self.rows: list[tuple[int, Logs]] = []
        self.evaluation = ""
        self.notices: dict[str, Notice] = {}
        self._rollouts = ""

    def add(self, rows: list[tuple[int, Logs]]) -> None:
        """
        Show further rollouts.

        Args:
            rows (`list[tuple[int, dict]]`): Steps, and what was logged at them.
        """
        self.rows += rows
        self._rollouts = self._table() + self._plots()
        self.display()

    def display(self) -> None:
        """Draw everything anew."""
        from IPython.display import HTML, display

        bar = html_progress_bar(self.value or 0, self.total, self.prefix, self.label or "", self.width)
        child = self.child_bar.html_code if self.child_bar is not None else ""
        self.html_code = STYLE + bar + self._notices() + self._rollouts + f"<p>{escape(self.evaluation)}</p>" + child
        if self.output is None:
            self.output = display(HTML(self.html_code), display_id=True)
        else:
            self.output.update(HTML(self.html_code))

    def _notices(self) -> str:
        """A line for each thing that was said, with the rest of it folded away."""
        return "".join(
            f"<details><summary>{escape(notice.title)}</summary>{escape(notice.text)}</details>"
            if notice.text
            else f"<p>{escape(notice.title)}</p>"
            for notice in self.notices.values()
        )

    def _columns(self) -> dict[str, str]:
        """Of the titles the names in the log, those that the latest row has."""
        columns = {
            "score": SCORE,
            "KL": self.kl,
            "target": TARGET,
            "beta": BETA,
            "entropy": ENTROPY,
            "critic's explained variance": CRITIC,
            "length": "completions/mean_length",
        }
        return {title: name for title, name in columns.items() if self.rows and name in self.rows[-1][1]}

    def _table(self) -> str:
        columns = self._columns()
        if not columns:
            return ""
        head = "".join(f"<th>{title}</th>" for title in ["step", *columns])
        body = "".join(
            f"<tr><td>{step}</td>"
            + "".join(f"<td>{_number(logs.get(name))}</td>" for name in columns.values())
            + "</tr>"
            for step, logs in self.rows[-SHOWN_ROWS:]
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _plots(self) -> str:
        if len(self.rows) < 2:
            return ""
        columns = self._columns()
        figures = []
        for title in ("score", "KL", "entropy", "critic's explained variance"):
            if title not in columns:
                continue
            steps = [step for step, _ in self.rows]
            numbers = [logs.get(columns[title]) for _, logs in self.rows]
            values = [math.nan if number is None else float(number) for number in numbers]
            latest = self.rows[-1][1] if title == "KL" else {}
            target = latest.get(TARGET)
            beta = f", beta {_number(latest[BETA])}" if BETA in latest else ""
            curve = plot(steps, values, target=target, label=title)
            figures.append(f"<figure><figcaption>{title}{beta}</figcaption>{curve}</figure>")
        return f'<div class="rollouts">{"".join(figures)}</div>'


def _number(value: Any) -> str:
    return "" if value is None else f"{value:.4g}"


class NotebookRolloutsCallback(NotebookProgressCallback):
    """Findings, one table of the latest rollouts, and plots of score, KL against its target, entropy and critic."""

    training_tracker: RolloutsTracker | None = None

    def say(self, notice: Notice) -> None:
        """
        Show a notice of the diagnostics above the table, in the place of an earlier one on the same.

        Args:
            notice ([`Notice`]): The notice; below a warning it is not shown.
        """
        if self.training_tracker is None:
            log_notice(notice)
        elif notice.level >= logging.WARNING:
            self.training_tracker.notices[notice.key] = notice
            self.training_tracker.display()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin a table, with the rollouts of a run that is resumed."""
        self.training_tracker = RolloutsTracker(state.max_steps, kl_name(args))
        self.training_tracker.add([(row["step"], row) for row in state.log_history if SCORE in row])

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Add a rollout's row."""
        if logs and SCORE in logs and self.training_tracker is not None:
            self.training_tracker.add([(state.global_step, logs)])

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Logs | None = None,
        **kwargs: Any,
    ) -> None:
        """Show an evaluation below the table."""
        self.prediction_bar = None
        if self.training_tracker is not None and metrics:
            self.training_tracker.evaluation = f"step {state.global_step}: {evaluation_line(metrics)}"
            self.training_tracker.remove_child()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the whole run once more."""
        if self.training_tracker is not None:
            self.training_tracker.update(state.global_step, force_update=True)
        self.training_tracker = None
