"""All detectors over one run."""

from typing import Any

from .collapse import Collapse
from .critic import Critic, ExplainedVariance
from .detector import Detector
from .drift import Drift
from .finding import Event, Finding
from .hacking import Hacking
from .history import History
from .movement import Movement
from .numerics import FirstPass, GradientSpikes, NegativeKL, NonFinite, RolloutGap
from .record import Record, RunSettings
from .rewards import NoSignal, RewardScale, Saturation
from .texts import LengthCollapse, LengthExploitation, Repetition, Truncation
from .updates import ClipSaturation, Controller, UpdateSize

STATE_VERSION = 1
# One cause lights several modes; the earlier one of this order is what to mend first.
PRECEDENCE: tuple[type[Detector], ...] = (
    NonFinite,
    FirstPass,
    NegativeKL,
    RolloutGap,
    NoSignal,
    Saturation,
    RewardScale,
    Critic,
    ExplainedVariance,
    GradientSpikes,
    UpdateSize,
    ClipSaturation,
    Controller,
    Drift,
    Hacking,
    Collapse,
    LengthExploitation,
    LengthCollapse,
    Truncation,
    Repetition,
    Movement,
)


class Diagnostics:
    """
    Reads the records of a run as they come and says what is wrong.

    Args:
        settings ([`RunSettings`], *optional*):
            What is known of the run before it starts.
    """

    def __init__(self, settings: RunSettings | None = None) -> None:
        self.settings = settings or RunSettings()
        self.history = History(self.settings)
        self.detectors = [detector(self.settings) for detector in PRECEDENCE]

    def observe(self, record: Record) -> list[Event]:
        """
        Takes one rollout; what opened, became worse or closed with it, the primary first.

        Args:
            record ([`Record`]): The rollout. A step that is not later than the last one is a resume.
        """
        self.history.add(record)
        return [event for detector in self.detectors for event in detector.observe(self.history)]

    @property
    def open_findings(self) -> list[Finding]:
        """What is wrong now: the primary finding first, then what may be its consequences."""
        return [detector.finding for detector in self.detectors if detector.finding is not None]

    @property
    def abstentions(self) -> dict[str, tuple[str, ...]]:
        """Modes, and single rules as `mode.rule`, that cannot be tested, with what they lack."""
        return {k: v for detector in self.detectors for k, v in detector.abstentions(self.history).items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything the next record is judged by, as plain values that survive JSON."""
        detectors = {detector.mode: detector.state_dict() for detector in self.detectors}
        return {"version": STATE_VERSION, "history": self.history.state_dict(), "detectors": detectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """
        Continues from a saved state.

        Raises:
            ValueError: If the state is of another version.
        """
        if state["version"] != STATE_VERSION:
            raise ValueError(
                f"The saved diagnostics have version {state['version']}, this release reads {STATE_VERSION}. Leave them "
                "out to start afresh."
            )
        self.history.load_state_dict(state["history"])
        for detector in self.detectors:
            detector.load_state_dict(state["detectors"][detector.mode])
