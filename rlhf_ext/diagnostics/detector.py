"""What every detector shares: when a rule is tested, how a finding opens, worsens and closes, what it abstains from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .finding import Cause, Event, Evidence, Finding, Severity
from .history import SHORTEST_RUN, History, alternatives
from .record import RunSettings

OPEN_AFTER = 3
"""Positive tests in a row that open a finding: false alarms of a trend fall from 0.21 to 0.02 a run even without
correlation (docs/diagnostics.md)."""
CLOSE_AFTER = 5
"""Negative tests in a row that close it; more than to open, so that a value at the threshold makes one finding."""


@dataclass(frozen=True)
class Verdict:
    """
    A rule that holds at the present row.

    Args:
        severity ([`Severity`]): How bad. CRITICAL only with hard evidence: numbers that are not finite, a held-out quality
            that falls, explained variance below zero for long, duplicates.
        title (`str`): The failure in a few words.
        summary (`str`): One or two sentences with numbers and units.
        evidence (`tuple[Evidence]`): The deciding one first.
        contrast (`tuple[str]`): Metrics whose change in the window belongs beside it.
    """

    severity: Severity
    title: str
    summary: str
    evidence: tuple[Evidence, ...]
    contrast: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """
    One way in which a mode shows.

    Args:
        name (`str`): Identifier within the mode.
        test (`Callable`): The rule; `None` where it does not hold.
        needs (`tuple[str]`): Canonical names without which it abstains; `"a|b"` for either.
        windows (`float`): Rows after the warm-up before the first test, in units of W.
        always (`bool`): A hard limit, tested at every rollout, during warm-up and in short runs too.
        on (`str`, *optional*): Tested only where this metric is in the record, for what is logged every few rollouts.
        patience (`int`): Positive tests in a row that open a finding.
    """

    name: str
    test: Callable[[History], Verdict | None]
    needs: tuple[str, ...] = ()
    windows: float = 1.0
    always: bool = False
    on: str | None = None
    patience: int = OPEN_AFTER

    def due(self, history: History) -> bool:
        """Whether the rule is tested at this row."""
        if self.always:
            return True
        if self.on is None:
            return history.is_test_row and not self.lacks(history)
        logged = [name for name in alternatives(self.on) if history.now(name) is not None]
        return bool(logged) and not self.lacks(history)

    def too_short(self, settings: RunSettings) -> bool:
        """Whether the run is planned too short for it."""
        return not self.always and settings.planned_rollouts is not None and settings.planned_rollouts < SHORTEST_RUN

    def lacks(self, history: History) -> tuple[str, ...]:
        """What it would need: names, or more rollouts."""
        missing = tuple([name for name in self.needs if not history.has(name)])
        if missing or self.always:
            return missing
        if self.too_short(history.settings):
            return (f"a run of at least {SHORTEST_RUN} rollouts",)
        rows = int(history.windows.warmup + self.windows * history.windows.window)
        return (f"{rows - history.rows} more rollouts",) if history.rows < rows else ()


def rank(causes: list[Cause]) -> tuple[Cause, ...]:
    """Confirmed before open before refuted, otherwise in the order given (how common they are)."""
    order = ("confirmed", "open", "refuted")
    return tuple(sorted(causes, key=lambda cause: order.index(cause.check)))


class Detector:
    """
    Base of the detectors, each of which reads one mode. A subclass lists its rules and its causes.

    Args:
        settings ([`RunSettings`]): What is known of the run.
    """

    mode = ""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.rules = self.list_rules()
        self._untimed = tuple(rule for rule in self.rules if rule.always or rule.on is not None)
        # Between the rows at which trends are tested there may be nothing to do.
        self.sleeps = not self._untimed and type(self).note is Detector.note
        self.finding: Finding | None = None
        self.opened_row = 0
        self._closed: tuple[int, int] | None = None
        # Per rule: tests in a row that said at least INFO, WARN, CRITICAL; and tests in a row that were negative.
        self._hits: dict[str, list[int]] = {}
        self._misses: dict[str, int] = {}

    def list_rules(self) -> tuple[Rule, ...]:
        """The rules of the mode, most telling first."""
        raise NotImplementedError

    def causes(self, history: History) -> list[Cause]:
        """What may be behind it, most common first, each checked against the log."""
        raise NotImplementedError

    def note(self, history: History) -> None:
        """Takes every record, before the rules; for detectors with a state of their own."""

    def observe(self, history: History) -> list[Event]:
        """Tests the rules that are due; what opened, escalated or closed."""
        self.note(history)
        rules = self.rules if history.is_test_row else self._untimed
        if not rules:
            return []
        established = []
        for rule in rules:
            if rule.always or rule.due(history):
                verdict = self._tested(rule, history)
                if verdict is not None:
                    established.append(verdict)
        if not established and self.finding is None:
            return []
        worst = max(established, key=lambda verdict: verdict.severity, default=None)
        if worst is not None and (self.finding is None or worst.severity > self.finding.severity):
            return self._raise(worst, history)
        if self.finding is not None and all(n >= CLOSE_AFTER for n in self._misses.values()):
            return self._close(history)
        return []

    def _tested(self, rule: Rule, history: History) -> Verdict | None:
        verdict = rule.test(history)
        if verdict is None:
            self._hits.pop(rule.name, None)
            if rule.name in self._misses:
                self._misses[rule.name] += 1
            return None
        hits = self._hits.setdefault(rule.name, [0, 0, 0])
        self._misses[rule.name] = 0
        for level in Severity:
            hits[level - 1] = hits[level - 1] + 1 if verdict.severity >= level else 0
        reached = [level for level in Severity if hits[level - 1] >= rule.patience]
        return replace(verdict, severity=min(verdict.severity, max(reached))) if reached else None

    def _raise(self, verdict: Verdict, history: History) -> list[Event]:
        opens = self.finding is None
        if opens and self._closed is not None:
            row, severity = self._closed
            if history.rows < row + history.windows.window // 2 and verdict.severity <= severity:
                return []
        self.opened_row = history.rows if opens else self.opened_row
        self.finding = Finding(
            mode=self.mode,
            title=verdict.title,
            severity=verdict.severity,
            step=history.step if self.finding is None else self.finding.step,
            summary=verdict.summary,
            evidence=(*verdict.evidence, *history.contrast(*verdict.contrast)),
            causes=rank(self.causes(history)),
            samples=history.kept_samples(),
        )
        return [Event("opened" if opens else "escalated", history.step, self.finding)]

    def _close(self, history: History) -> list[Event]:
        assert self.finding is not None
        event = Event("closed", history.step, self.finding)
        self._closed = history.rows, int(self.finding.severity)
        self.finding = None
        self._misses = {}
        return [event]

    def abstentions(self, history: History) -> dict[str, tuple[str, ...]]:
        """What is missing, by mode where no rule can be tested, else by `mode.rule`."""
        lacking = {rule.name: rule.lacks(history) for rule in self.rules}
        if all(lacking.values()):
            return {self.mode: tuple(dict.fromkeys(name for names in lacking.values() for name in names))}
        return {f"{self.mode}.{name}": names for name, names in lacking.items() if names}

    def state_dict(self) -> dict[str, Any]:
        """Counters and the open finding, as plain values."""
        return {
            "finding": self.finding and self.finding.as_dict(),
            "opened_row": self.opened_row,
            "closed": self._closed and list(self._closed),
            "hits": {name: list(hits) for name, hits in self._hits.items()},
            "misses": dict(self._misses),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a saved state, bit for bit."""
        self.finding = Finding.from_dict(state["finding"]) if state["finding"] else None
        self.opened_row = state["opened_row"]
        self._closed = state["closed"] and (state["closed"][0], state["closed"][1])
        self._hits = {name: list(hits) for name, hits in state["hits"].items()}
        self._misses = dict(state["misses"])
