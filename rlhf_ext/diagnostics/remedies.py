"""What `diagnostics="act"` does about a finding: which lever, how far, how often, and when it is taken back."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from .critic_signals import FASTEST, CriticConfig, error_of_constant
from .engine import Diagnostics
from .finding import Finding, Severity
from .history import History
from .preflight import PreflightConfig
from .record import RunSettings
from .signals import distance, optimum_kl

LeverName = Literal["beta", "policy_lr", "critic_lr", "update_kl", "step", "stop"]

MOST_ACTIONS = 3
"""Times that a lever is moved in a run, which bounds how far; what three did not mend, a fourth will not."""
UPDATE_KL = 0.02
"""Nats per token at which an update ends early; approx_kl is usually below (37 details of PPO)."""
LEAST_RAISE = 1.5
"""Factor below which raising a rate is not worth one of the three actions."""
SLOWEST = 0.1
"""Critic's learning rate over the policy's, below which nobody wants it; recipes use 1 to 10."""
HIGHEST_POLICY_RATE = 2e-3
"""Above the learning rates of published recipes, LoRA's too, which end at some 1e-3."""


@dataclass(frozen=True)
class Action:
    """
    A lever that is moved.

    Args:
        lever (`str`):
            `"beta"`, `"policy_lr"` and `"critic_lr"` are multiplied by `value`; `"update_kl"` is set to `value` nats per
            token (infinity: no limit); `"step"` is left out, which the trainer decides by itself; `"stop"` ends the run
            with the best checkpoint.
        value (`float`): Factor or limit.
        mode (`str`): Mode of the finding that it answers.
        reason (`str`): Why, in a sentence with numbers.
        since (`int`): Step at which that finding opened.
        row (`int`): Rollout after which it is done.
        metric (`str`): What must improve, or the action is taken back.
        before (`float`, *optional*): Its level at the time.
        is_reversal (`bool`): Whether it takes an earlier action back.
    """

    lever: LeverName
    value: float
    mode: str
    reason: str
    since: int
    row: int
    metric: str
    before: float | None
    is_reversal: bool = False


@dataclass(frozen=True)
class Remedy:
    """
    What is done about a mode.

    Args:
        mode (`str`): The mode.
        lever (`str`): The lever.
        value (`Callable`): From the history to the factor or limit of one action, `None` for none now.
        metric (`str`): What must improve.
        falls (`bool`): Whether improving is falling.
        cause (`str`, *optional*): Only where this cause is confirmed.
        severity ([`Severity`]): Only from this severity on.
    """

    mode: str
    lever: LeverName
    value: Callable[[History], float | None]
    metric: str
    falls: bool = True
    cause: str | None = None
    severity: Severity = Severity.WARN


def _stronger_penalty(history: History) -> float:
    """
    From beta to the one at which the optimum for Gaussian scores, `KL = score_std^2 / (2 beta^2)`, is the KL that is
    wanted: the target, or without one the present KL. Between 1.5 and 4 at a time.
    """
    optimum, kl, target = optimum_kl(history), history.level(distance(history).name), distance(history).target
    wanted = target if target is not None else kl
    if optimum is None or wanted is None or wanted <= 0:
        return 1.5
    return min(max(math.sqrt(min(optimum / wanted, 1e6)), 1.5), 4.0)


def _faster_critic(history: History) -> float | None:
    """
    Between 3 and 10 times, the more the further the values are off: what is left to travel is `sqrt(error - 1)` deviations
    of the returns. A rate below a tenth of the policy's is brought to the policy's at once, and none beyond ten times it.
    Nothing while the error falls fast enough to be a constant's within a window.
    """
    config = CriticConfig()
    error, half = error_of_constant(history, config.rows), history.windows.window // 2
    before, (own, policy) = error_of_constant(history, config.rows, before=half), history.learning_rates()
    limit = config.error(history.settings)
    if error is None or own is None or policy is None or error <= limit:
        return None
    falls = before is not None and 2 * math.log(before / error) >= math.log(error / limit)
    room = FASTEST * policy / own
    if falls or room < LEAST_RAISE:
        return None
    return policy / own if own < SLOWEST * policy else min(max(3 * math.sqrt(error - 1), 3.0), 10.0, room)


def _slower_critic(history: History) -> float:
    """Down to three times the policy's rate, where that is known, by a factor of 0.03 to 0.3."""
    own, policy = history.learning_rates()
    return 0.3 if own is None or policy is None else min(max(3 * policy / own, 0.03), 0.3)


def _always(value: float) -> Callable[[History], float | None]:
    return lambda _: value


REMEDIES: tuple[Remedy, ...] = (
    *(
        Remedy(mode, "stop", _always(1.0), "quality", falls=False, severity=Severity.CRITICAL)
        for mode in ("M1", "M2", "M3")
    ),
    # One cause excludes the other: thirty times the policy's rate, and less than five times.
    *(
        Remedy(mode, "critic_lr", value, "value_loss", cause=cause)
        for mode in ("M4", "X7")
        for cause, value in (("critic-learning-rate", _slower_critic), ("critic-too-slow", _faster_critic))
    ),
    Remedy("X6", "update_kl", _always(UPDATE_KL), "kl_update"),
    Remedy("X5", "policy_lr", _always(0.7), "pg_clipfrac"),
    Remedy("M1", "beta", _stronger_penalty, "kl_ref_seq|kl_ref_tok"),
    Remedy("M5", "beta", _always(0.67), "kl_ref_seq|kl_ref_tok", falls=False, cause="beta-too-high"),
)
"""By mode, the first that is possible counts. Rewards, data and sampling are never touched."""


@dataclass
class _Trial:
    """
    An action whose effect is not known yet.

    Args:
        action ([`Action`]): The action.
        falls (`bool`): Whether improving is falling.
        factor (`float`): By how much the lever was moved since its metric last improved, this action included.
    """

    action: Action
    falls: bool
    factor: float

    def has_helped(self, now: float | None) -> bool:
        """Whether the metric is better than it was."""
        before = self.action.before
        return before is not None and now is not None and (now < before if self.falls else now > before)


@dataclass
class Remediation:
    """
    Chooses actions from the findings of a run. Every lever is moved at most `MOST_ACTIONS` times, at least half a window
    apart. An action that did not improve its metric within a window is taken back, with those before it that had not either
    when the lever was moved on, and its lever left alone from then on.

    Attributes:
        factors (`dict[str, float]`): Product of the factors by which each lever was moved.
        counts (`dict[str, int]`): Times that each was moved.
        last_row (`dict[str, int]`): Rollout at which each was last moved.
        disabled (`dict[str, str]`): Levers that are left alone -> why.
    """

    factors: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    last_row: dict[str, int] = field(default_factory=dict)
    disabled: dict[str, str] = field(default_factory=dict)
    _trials: list[_Trial] = field(default_factory=list)

    def at_start(self, settings: RunSettings) -> list[Action]:
        """
        What to do before the first step: a critic's rate that the settings check (X17) warns of is brought to the policy's,
        which is the default, since a trunk that the first updates spoil does not come back. A policy's rate that no recipe
        has is not passed on.

        Args:
            settings ([`~rlhf_ext.diagnostics.RunSettings`]): Of the run.
        """
        own, policy, limit = settings.critic_learning_rate, settings.learning_rate, PreflightConfig().critic_ratio
        if not own or not policy or 1 / limit <= own / policy <= limit:
            return []
        if own < policy and policy > HIGHEST_POLICY_RATE:
            # The slip is the policy's then, and its rate would break the critic too.
            return []
        why = f"The critic's learning rate {own:g} is {own / policy:.3g} times the policy's {policy:g}."
        action = Action("critic_lr", policy / own, "X17", why, 0, 0, "value_loss", None)
        self._note(action, falls=True)
        return [action]

    def decide(self, diagnostics: Diagnostics) -> list[Action]:
        """
        What to do after the latest rollout.

        Args:
            diagnostics ([`Diagnostics`]): Has observed it.

        Returns:
            `list[Action]`: reversals of what did not help, and at most one new action, for the most telling finding that
            anything can be done about.
        """
        history = diagnostics.history
        reversals = self._reversals(history, {finding.mode for finding in diagnostics.open_findings})
        reversals += self._slow_down_again(history)
        for finding in diagnostics.open_findings:
            for remedy in REMEDIES:
                action = self._action(remedy, finding, history) if remedy.mode == finding.mode else None
                if action is not None:
                    self._note(action, remedy.falls)
                    return [*reversals, action]
        return reversals

    def disable(self, lever: str, why: str) -> None:
        """Leave a lever alone, since the run cannot move it."""
        self.disabled[lever] = why
        self.factors.pop(lever, None)
        self._trials = [trial for trial in self._trials if trial.action.lever != lever]

    def _action(self, remedy: Remedy, finding: Finding, history: History) -> Action | None:
        lever, metric = remedy.lever, history.first(remedy.metric)
        confirmed = {cause.name for cause in finding.causes if cause.check == "confirmed"}
        if lever in self.disabled or finding.severity < remedy.severity or self.counts.get(lever, 0) >= MOST_ACTIONS:
            return None
        if remedy.cause is not None and remedy.cause not in confirmed:
            return None
        if lever in self.last_row and history.rows - self.last_row[lever] < history.windows.window // 2:
            return None
        if lever in ("update_kl", "stop") and lever in self.factors:
            return None
        value = remedy.value(history)
        if value is None:
            return None
        before = history.level(metric)
        return Action(lever, value, finding.mode, finding.summary, finding.step, history.rows, metric, before)

    def _note(self, action: Action, falls: bool) -> None:
        lever = action.lever
        is_factor = lever not in ("update_kl", "stop")
        self.factors[lever] = self.factors.get(lever, 1.0) * action.value if is_factor else action.value
        self.counts[lever] = self.counts.get(lever, 0) + 1
        self.last_row[lever] = action.row
        if lever == "stop":
            return
        factor = action.value
        for trial in [trial for trial in self._trials if trial.action.lever == lever]:
            self._trials.remove(trial)
            if trial.action.mode == action.mode and not trial.has_helped(action.before):
                factor *= trial.factor
        self._trials.append(_Trial(action, falls, factor))

    def _reversals(self, history: History, still_open: set[str]) -> list[Action]:
        reversals = []
        for trial in list(self._trials):
            action = trial.action
            if history.rows - action.row < history.windows.window:
                continue
            self._trials.remove(trial)
            now = history.level(action.metric)
            if action.mode in still_open and not trial.has_helped(now):
                reversals.append(self._reversal(trial, now, history.rows))
        return reversals

    def _slow_down_again(self, history: History) -> list[Action]:
        """
        Takes a raise of the critic's rate back once it has caught up: what is fast enough to travel is too fast to tell
        one completion from another. A rate that was a slip stays at the policy's.
        """
        raised, config, (own, policy) = self.factors.get("critic_lr", 1.0), CriticConfig(), history.learning_rates()
        error = error_of_constant(history, config.rows)
        if raised <= 1 or error is None or own is None or policy is None or error > config.error(history.settings):
            return []
        value = policy / own if own / raised < SLOWEST * policy else 1 / raised
        if value >= 1:
            return []
        self.factors["critic_lr"] = raised * value
        self.last_row["critic_lr"] = history.rows
        self._trials = [trial for trial in self._trials if trial.action.lever != "critic_lr"]
        why = f"The critic has caught up: its squared error is {error:.3g} of a constant's."
        return [
            Action("critic_lr", value, "M4", why, history.step, history.rows, "value_loss", error, is_reversal=True)
        ]

    def _reversal(self, trial: _Trial, now: float | None, row: int) -> Action:
        action = trial.action
        level = "unknown" if now is None else f"{now:.3g}"
        before = "unknown" if action.before is None else f"{action.before:.3g}"
        why = f"{action.metric} was {before} and is {level} a window later: it did not help."
        self.disabled[action.lever] = why
        is_limit = action.lever == "update_kl"
        value = math.inf if is_limit else 1 / trial.factor
        self.factors[action.lever] = value if is_limit else self.factors[action.lever] * value
        return replace(action, value=value, reason=why, row=row, before=now, is_reversal=True)

    @property
    def update_kl(self) -> float:
        """Nats per token at which an update ends early."""
        return self.factors.get("update_kl", math.inf)

    def state_dict(self) -> dict[str, Any]:
        """Everything the next decision depends on, as plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state."""
        self.factors, self.counts = dict(state["factors"]), dict(state["counts"])
        self.last_row, self.disabled = dict(state["last_row"]), dict(state["disabled"])
        self._trials = [
            _Trial(Action(**trial["action"]), trial["falls"], trial["factor"]) for trial in state["_trials"]
        ]
