"""All detectors over one run: records in, events out, one primary finding with its consequences."""

from typing import Any

import numpy as np

from .collapse import Collapse
from .critic import Critic, ExplainedVariance
from .detector import Detector
from .drift import Drift
from .finding import Event, Finding, Severity
from .hacking import Hacking
from .history import History
from .movement import Movement
from .numerics import FirstPass, NegativeKL, NonFinite, RolloutGap
from .record import Record, RunSettings
from .rewards import NoSignal, RewardScale, Saturation
from .texts import LengthCollapse, LengthExploitation, Repetition, Truncation
from .updates import ClipSaturation, Controller, GradientSpikes, UpdateSize

STATE_VERSION = 3

DETECTORS: tuple[type[Detector], ...] = (
    NonFinite,
    FirstPass,
    NegativeKL,
    RolloutGap,
    NoSignal,
    Saturation,
    RewardScale,
    Movement,
    UpdateSize,
    ClipSaturation,
    Drift,
    Critic,
    ExplainedVariance,
    GradientSpikes,
    Controller,
    Hacking,
    Collapse,
    Truncation,
    LengthExploitation,
    LengthCollapse,
    Repetition,
)
"""By precedence: what stands earlier causes what stands later. Numbers that are not finite; bugs; no signal, or another; no
movement, which leaves a critic nothing to foresee; the size of the updates; drift, by which it may lose what it foresaw;
the critic; what drift does to the outputs."""

PRECEDENCE = {detector.mode: place for place, detector in enumerate(DETECTORS)}


class Diagnostics:
    r"""
    Reads a run record by record and says what is wrong with it.

    ```python
    diagnostics = Diagnostics(RunSettings(planned_rollouts=200, kl_target=6.0, kl_unit="sequence"))
    for record in records:
        for event in diagnostics.observe(record):
            print(event.kind, event.finding.title, event.finding.causes[0].remedy)
    ```

    Args:
        settings ([`RunSettings`], *optional*): What is known of the run; the more, the more causes can be checked.
    """

    def __init__(self, settings: RunSettings | None = None) -> None:
        self.settings = settings or RunSettings()
        self.history = History(self.settings)
        self.detectors = tuple(detector(self.settings) for detector in DETECTORS)
        self._sleepless = tuple(detector for detector in self.detectors if not detector.sleeps)

    def observe(self, record: Record) -> list[Event]:
        """
        Takes the next rollout.

        Args:
            record ([`Record`]): Its numbers. A step that is not later than the last one is a resume: what follows replaces
                what was logged from there on.

        Returns:
            `list[Event]`: what opened, escalated or closed, by precedence.
        """
        with np.errstate(all="ignore"):
            self.history.add(record)
            awake = self.detectors if self.history.is_test_row else self._sleepless
            return [event for detector in awake for event in detector.observe(self.history)]

    @property
    def groups(self) -> list[tuple[Finding, ...]]:
        """
        Open findings, those that opened within a window of the first of them together: first the primary one, by
        precedence, then its consequences. The group with the worst finding comes first, among equals the one that opened
        first: what opens long after is rather a consequence.
        """
        opened = sorted((d for d in self.detectors if d.finding is not None), key=lambda d: d.opened_row)
        groups: list[list[Detector]] = []
        for detector in opened:
            if groups and detector.opened_row - groups[-1][0].opened_row <= self.history.windows.window:
                groups[-1].append(detector)
            else:
                groups.append([detector])
        ranked = [sorted((d.finding for d in group if d.finding is not None), key=_weight) for group in groups]
        return [tuple(group) for group in sorted(ranked, key=_urgency)]

    @property
    def open_findings(self) -> list[Finding]:
        """All open findings, the primary one first."""
        return [finding for group in self.groups for finding in group]

    @property
    def abstentions(self) -> dict[str, tuple[str, ...]]:
        """What cannot be judged: `mode`, or `mode.rule` where other rules can -> what is missing."""
        return {name: lacks for d in self.detectors for name, lacks in d.abstentions(self.history).items()}

    def rearm(self) -> None:
        """Learns the reference window anew: after a change of the data, of the reward or of the reference model."""
        self.history.rearm()

    def state_dict(self) -> dict[str, Any]:
        """Everything the next verdict depends on, as plain values that survive JSON bit for bit."""
        return {
            "version": STATE_VERSION,
            "history": self.history.state_dict(),
            "detectors": {detector.mode: detector.state_dict() for detector in self.detectors},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues from a saved state, bit for bit.

        Args:
            state (`dict`): What [`~Diagnostics.state_dict`] returned, with the same `settings`.

        Raises:
            ValueError: The state is of another version, or of other detectors.
        """
        modes = [detector.mode for detector in self.detectors]
        if state.get("version") != STATE_VERSION or sorted(state.get("detectors", {})) != sorted(modes):
            raise ValueError(
                f"The saved diagnostics have version {state.get('version')!r} and detectors "
                f"{sorted(state.get('detectors', {}))}; this version is {STATE_VERSION} with {sorted(modes)}. Leave the "
                "saved state out: the diagnostics then start anew from here."
            )
        self.history.load_state_dict(state["history"])
        for detector in self.detectors:
            detector.load_state_dict(state["detectors"][detector.mode])


def _urgency(group: list[Finding]) -> tuple[int, bool]:
    return -max(finding.severity for finding in group), group[0].mode != NonFinite.mode


def _weight(finding: Finding) -> tuple[bool, int]:
    return finding.severity == Severity.INFO, PRECEDENCE[finding.mode]
