"""The diagnostics of a run while it trains."""

import os
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, NamedTuple

from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging
from trl import GRPOTrainer, RLOOTrainer

from ..diagnostics import Diagnostics, Event, RunSettings, Sample, Severity
from ..diagnostics.diversity import text_metrics
from ..diagnostics.history import KEPT_SAMPLES
from ..diagnostics.journal import action_line, event_line, probe_line, record_line, settings_line
from ..diagnostics.numerics import NonFinite
from ..diagnostics.remedies import Action, Remediation
from ..diagnostics.rollouts import LiveRollouts
from ..diagnostics.run_config import settings_from
from .checkpoint import read_json, save_json
from .trackers import send_alert

logger = logging.get_logger(__name__)

JOURNAL_FILE = "diagnostics.jsonl"
STATE_FILE = "diagnostics.json"
AVERAGED_PROBES = 3
"""Probes whose mean is the quality of a checkpoint: the best of many single ones is mostly luck."""
SAMPLE_CHARACTERS = 600
"""Of a prompt its last, of a completion its first, as many as tell what it is like."""


def _never_ends_the_run(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of the diagnostics after whose failure they are off, which is logged once, and training goes on."""

    @wraps(method)
    def guarded(self: "DiagnosticsCallback", *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except OSError as error:
            logger.warning(f"The diagnostics cannot be written and are off from here on; training goes on. {error}")
        except Exception:
            logger.exception("The diagnostics failed and are off from here on; training goes on. Please report this.")
        self.diagnostics = None

    return guarded


class Texts(NamedTuple):
    """What the completions of a rollout are like: metrics by name, and a few of them as evidence."""

    values: dict[str, float]
    samples: tuple[Sample, ...]


class Notice(NamedTuple):
    """
    What is said of a finding or an action while training.

    Args:
        key (`str`): What it is about; a later notice with the same key tells more of it.
        title, text (`str`): What happened, and what it means. `text` may be empty.
        level (`int`): As in `logging`.
    """

    key: str
    title: str
    text: str
    level: int


def log_notice(notice: Notice) -> None:
    """Say it in a line of the log."""
    logger.log(notice.level, f"{notice.title}. {notice.text}".rstrip())


class DiagnosticsCallback(TrainerCallback):
    """
    Reads the log of an online trainer as it is written, and says what is wrong, why, and which setting to change: a line
    in the log and an alert in wandb or trackio when a finding opens, becomes worse or closes, and everything in
    `diagnostics.jsonl` in the output folder, which `rlhf-ext diagnose` reads. [`PPOTrainer`] has one by default; TRL's
    [`~trl.GRPOTrainer`] and [`~trl.RLOOTrainer`] take it like any other callback.

    ```python
    >>> trainer = GRPOTrainer(...)
    >>> trainer.add_callback(DiagnosticsCallback(trainer))
    ```

    Args:
        trainer ([`~trl.GRPOTrainer`] or [`~trl.RLOOTrainer`], *optional*):
            The trainer, whose completions are then read too (duplicates, loops) and kept as evidence. Without it only what
            is logged is read.
        apply ([`~collections.abc.Callable`], *optional*):
            `(action, control) -> str` that carries out an [`~rlhf_ext.diagnostics.remedies.Action`] on this process and
            says what came of it. Only [`PPOTrainer`] with `diagnostics="act"` has one.

    Attributes:
        diagnostics ([`~rlhf_ext.diagnostics.Diagnostics`], *optional*):
            The engine, on the main process and once training has begun.
        say (`Callable[[Notice], None]`):
            Where findings and actions are shown: lines of the log, unless a display takes them.
    """

    def __init__(
        self,
        trainer: GRPOTrainer | RLOOTrainer | None = None,
        apply: Callable[[Action, TrainerControl], str] | None = None,
    ) -> None:
        self.trainer = trainer
        self.apply = apply
        self.say: Callable[[Notice], None] = log_notice
        self.remediation = Remediation()
        self.diagnostics: Diagnostics | None = None
        self._rollouts: LiveRollouts | None = None
        self._start: Callable[[], tuple[Diagnostics, LiveRollouts]]
        self._texts: Texts | None = None
        self._updates = 1
        self._journal = ""

    # ---- Events of the trainer --------------------------------------------------------------------------------------

    @_never_ends_the_run
    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Make the engine, or continue the one that is saved beside the checkpoint that training resumes from."""
        self.remediation = Remediation()
        self._texts, self._updates = None, updates_per_rollout(args)
        updates = self._updates
        planned = state.max_steps // max(updates, state.logging_steps)
        settings = live_settings(args, planned, str(kwargs["model"].dtype).removeprefix("torch."))
        if state.is_world_process_zero:
            self._begin(settings, updates, args, state)
        if self.apply is not None and not state.global_step:
            for action in self.remediation.at_start(settings):
                self._act(action, state.global_step, control)

    def _begin(self, settings: RunSettings, updates: int, args: TrainingArguments, state: TrainerState) -> None:
        self._start = lambda: (Diagnostics(settings), LiveRollouts(updates, state.logging_steps))
        self.diagnostics, self._rollouts = self._start()
        self._journal = os.path.join(args.output_dir, JOURNAL_FILE)
        os.makedirs(args.output_dir, exist_ok=True)
        self._write(settings_line(settings))
        if state.global_step:
            self.restore(os.path.join(args.output_dir, f"checkpoint-{state.global_step}"))

    @_never_ends_the_run
    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Read the completions of a new rollout, before an evaluation writes its own among them."""
        if self.diagnostics is not None and (state.global_step - 1) % self._updates == 0:
            self._texts = self._read_texts()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Read a row of the log; where it ends a rollout, judge and, with `apply`, act."""
        actions: list[Action] = []
        if self.diagnostics is not None and logs and "train_runtime" not in logs:
            actions = self._read(state.global_step, logs, args) or []
        if self.apply is None:
            return
        # The main process alone decides: rounding must not let the ranks' learning rates part.
        actions, state.best_model_checkpoint = broadcast_object_list([actions, state.best_model_checkpoint])
        for action in actions:
            self._act(action, state.global_step, control)

    @_never_ends_the_run
    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the state beside a checkpoint that the trainer has not put it into itself."""
        folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
        if os.path.isdir(folder) and not os.path.isfile(os.path.join(folder, STATE_FILE)):
            self.save(folder)

    # ---- Judging ----------------------------------------------------------------------------------------------------

    @_never_ends_the_run
    def _read(self, step: int, logs: dict[str, Any], args: TrainingArguments) -> list[Action]:
        assert self.diagnostics is not None and self._rollouts is not None
        numbers = {k: float(v) for k, v in logs.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        record = self._rollouts.add(step, numbers)
        if record is None:
            return []
        if self._texts is not None:
            record = replace(record, values={**record.values, **self._texts.values}, samples=self._texts.samples)
        events = self.diagnostics.observe(record)
        self._write(record_line(record), *self._probe_lines(step), *map(event_line, events))
        for event in events:
            announce(event, args.report_to, self.say)
        return self.remediation.decide(self.diagnostics) if self.apply is not None else []

    def _read_texts(self) -> "Texts | None":
        """What the completions show that the trainer keeps, in which those of an evaluation will take their place."""
        if self.trainer is None or not self.trainer._logs["completion"]:
            return None
        prompts = [plain_text(x) for x in self.trainer._logs["prompt"]]
        completions = [answer_text(x) for x in self.trainer._logs["completion"]]
        columns = zip(*self.trainer._logs["rewards"].values(), strict=True)
        weights = self.trainer.reward_weights.tolist()
        scores = [sum(w * s for w, s in zip(weights, row, strict=True) if s is not None and s == s) for row in columns]
        samples = [Sample(*row) for row in zip(prompts, completions, scores, strict=True)]
        best = sorted(samples, key=lambda sample: sample.score or 0.0, reverse=True)[: KEPT_SAMPLES - 2]
        kept = [*best, *[s for s in samples if not any(s is b for b in best)]][:KEPT_SAMPLES]
        return Texts(text_metrics(prompts, completions), tuple(map(_shortened, kept)))

    def _probe_lines(self, step: int) -> list[str]:
        """The answers of a probe of this rollout, which are on the main process's prompts."""
        probe = getattr(self.trainer, "_probe", None)
        if probe is None or not probe.answers:
            return []
        answers, probe.answers = probe.answers[:KEPT_SAMPLES], []
        return [probe_line(step, map(_shortened, answers))]

    # ---- Acting -----------------------------------------------------------------------------------------------------

    def _act(self, action: Action, step: int, control: TrainerControl) -> None:
        assert self.apply is not None
        result = self.apply(action, control)
        if self.diagnostics is not None:
            self._note(action, step, result)
            title = f"{action.mode} at step {step}, {action.lever}: {result} ({action.reason})"
            self.say(Notice(f"{action.mode} {action.lever}", title, "", logging.WARNING))

    @_never_ends_the_run
    def note_left_out(self, step: int, reason: str, result: str) -> None:
        """Put a step that the trainer left out into the ledger."""
        if self.diagnostics is not None:
            row = self.diagnostics.history.rows
            action = Action("step", 0.0, NonFinite.mode, reason, step, row, "nonfinite", None)
            self._note(action, step, result)

    @_never_ends_the_run
    def _note(self, action: Action, step: int, result: str) -> None:
        self._write(action_line(step, action, result))

    @_never_ends_the_run
    def note_quality(self, folder: str, args: TrainingArguments, state: TrainerState) -> None:
        """To act, mark the checkpoint with the best held-out quality, which the Trainer then does not delete."""
        # With a limit of one the best would stand in the place of the latest, from which the run could go on.
        chooses = self.apply is not None and args.metric_for_best_model is None and args.save_total_limit != 1
        if self.diagnostics is None or not chooses:
            return
        recent = self.diagnostics.history.values("quality", self.diagnostics.history.windows.window)[-AVERAGED_PROBES:]
        if len(recent) and (state.best_metric is None or recent.mean() > state.best_metric):
            state.best_metric, state.best_model_checkpoint = float(recent.mean()), folder
            state.best_global_step = state.global_step

    # ---- State ------------------------------------------------------------------------------------------------------

    @_never_ends_the_run
    def save(self, folder: str) -> None:
        """Write the state to a checkpoint, on the main process."""
        if self.diagnostics is None or self._rollouts is None:
            return
        state = {
            "diagnostics": self.diagnostics.state_dict(),
            "remediation": self.remediation.state_dict(),
            "rollouts": self._rollouts.state_dict(),
            "texts": None if self._texts is None else [self._texts.values, [s._asdict() for s in self._texts.samples]],
        }
        save_json(state, os.path.join(folder, STATE_FILE))

    @_never_ends_the_run
    def restore(self, folder: str) -> None:
        """
        Continue from the state in a checkpoint, on the main process; without one, such as after a run without diagnostics,
        they start anew.
        """
        if self.diagnostics is None:
            return
        self.remediation = Remediation()
        self.diagnostics, self._rollouts = self._start()
        path = os.path.join(folder, STATE_FILE)
        if not os.path.isfile(path):
            return
        state = read_json(path)
        try:
            self.diagnostics.load_state_dict(state["diagnostics"])
        except ValueError as error:
            logger.warning(f"The diagnostics start anew, at step {state['diagnostics']['history']['step']}: {error}")
            return
        self._rollouts.load_state_dict(state["rollouts"])
        self.remediation.load_state_dict(state["remediation"])
        if state.get("texts") is not None:
            values, samples = state["texts"]
            self._texts = Texts(values, tuple(Sample(**sample) for sample in samples))

    def _write(self, *lines: str) -> None:
        with open(self._journal, "a", encoding="utf-8") as file:
            file.writelines(lines)


def updates_per_rollout(args: Any) -> int:
    """Optimizer steps on one rollout, by the settings of TRL's online trainers."""
    return max(1, args.steps_per_generation * args.num_iterations // args.gradient_accumulation_steps)


def live_settings(args: Any, planned_rollouts: int, dtype: str) -> RunSettings:
    """
    What the settings of a trainer say of its run.

    Args:
        args ([`~trl.GRPOConfig`], [`~trl.RLOOConfig`] or [`PPOConfig`]): Settings.
        planned_rollouts (`int`): Records that the run will give.
        dtype (`str`): Format of the weights, in which the model computes where `args` do not ask for mixed precision.
    """
    known = settings_from(args.to_dict())
    if not (args.bf16 or args.fp16):
        known["dtype"] = dtype
    return RunSettings(**known | {"planned_rollouts": planned_rollouts})


def _shortened(sample: Sample) -> Sample:
    return Sample(sample.prompt[-SAMPLE_CHARACTERS:], sample.completion[:SAMPLE_CHARACTERS], sample.score)


def plain_text(prompt_or_completion: Any) -> str:
    """A text as it is, a conversation as a line a message."""
    if isinstance(prompt_or_completion, str):
        return prompt_or_completion
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt_or_completion)


def answer_text(completion: Any) -> str:
    """A text as it is; of a conversation what is said, without who says it: the assistant alone does."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message.get("content") or "") for message in completion)


def announce(event: Event, report_to: list[str], say: Callable[[Notice], None] = log_notice) -> None:
    """A notice, and from WARN on an alert in the tracker."""
    finding = event.finding
    cures = [cause for cause in finding.causes if cause.check != "refuted"]
    title = f"{finding.mode} {finding.title}"
    level = level_of(finding.severity)
    if event.kind == "closed":
        say(Notice(finding.mode, f"{title}: over at step {event.step}", "", level))
        return
    seen = f"{finding.confidence} " if finding.confidence else ""
    text = f"{finding.summary} {seen}" + (f"Most likely: {cures[0].why} Cure: {cures[0].remedy}" if cures else "")
    say(Notice(finding.mode, f"{finding.severity.name} {title} ({event.kind} at step {event.step})", text, level))
    if finding.severity < Severity.WARN:
        return
    try:
        send_alert(report_to, title, text, is_critical=finding.severity == Severity.CRITICAL)
    except Exception:
        # Whatever a tracker raises when its server does not answer.
        logger.exception("The alert could not be sent.")


def level_of(severity: Severity) -> int:
    """INFO findings are for those who ask for them; the others are shown with the default verbosity."""
    return logging.INFO if severity == Severity.INFO else logging.WARNING
