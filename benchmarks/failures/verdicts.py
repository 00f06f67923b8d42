"""What three readers say of the same records: the diagnostics, fixed thresholds, and plain trend tests."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlhf_ext.diagnostics import Record, RunSettings, Severity
from rlhf_ext.diagnostics.engine import Diagnostics
from rlhf_ext.diagnostics.statistics import mann_kendall_z

from .stored import read_rows

BLOCK = 30
"""Rollouts that the trend tests look at, the diagnostics' own window in runs of this length."""


@dataclass
class Verdict:
    """
    What a reader said of a run.

    Args:
        alarms (`dict[str, int]`): Mode -> rollout of the first warning.
        critical (`set[str]`): Modes that were called critical.
        primary (`str`, *optional*): Mode of the primary finding when a warning was last open.
        cause (`str`, *optional*): Its first cause.
    """

    alarms: dict[str, int] = field(default_factory=dict)
    critical: set[str] = field(default_factory=set)
    primary: str | None = None
    cause: str | None = None

    def as_row(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            "alarms": dict(sorted(self.alarms.items())),
            "critical": sorted(self.critical),
            "primary": self.primary,
            "cause": self.cause,
        }


def load(path: Path, leave_out: tuple[str, ...] = ()) -> tuple[RunSettings, list[Record]]:
    """Settings and records of a stored run, without the metrics in `leave_out`."""
    header, *rows = read_rows(path)
    rows = [{name: value for name, value in row.items() if name not in leave_out} for row in rows]
    return RunSettings(**header["settings"]), [Record(step=row.pop("step"), values=row) for row in rows]


def diagnose(settings: RunSettings, records: list[Record]) -> Verdict:
    """The diagnostics, record by record."""
    diagnostics, verdict = Diagnostics(settings), Verdict()
    for rollout, record in enumerate(records, start=1):
        for event in diagnostics.observe(record):
            finding = event.finding
            if event.kind != "closed" and finding.severity >= Severity.WARN:
                verdict.alarms.setdefault(finding.mode, rollout)
            if finding.severity == Severity.CRITICAL:
                verdict.critical.add(finding.mode)
        first = next(iter(diagnostics.open_findings), None)
        if first is not None and first.severity >= Severity.WARN:
            verdict.primary = first.mode
            verdict.cause = first.causes[0].name if first.causes else None
    return verdict


def _lasting(records: list[Record], name: str, holds: Callable[[float], bool], times: int) -> int | None:
    """Rollout at which `holds` has been true of a metric `times` in a row."""
    count = 0
    for rollout, record in enumerate(records, start=1):
        value = record.get(name)
        count = count + 1 if value is not None and holds(value) else 0
        if count == times:
            return rollout
    return None


FIXED: tuple[tuple[str, str, Callable[[float], bool], int], ...] = (
    ("M1", "kl_ref_seq", lambda x: x > 0.35, 5),  # rldk: stop
    ("M2", "entropy_tok", lambda x: x < 1.0, 50),  # rlwatch
    ("M4", "explained_var", lambda x: x < 0, 10),  # rlprobe
    ("M5", "kl_ref_seq", lambda x: x < 1e-4, 30),  # rl-doctor: flat
    ("X1", "nonfinite", lambda x: x > 0, 1),
    ("X2", "kl_ref_seq", lambda x: x < -1, 1),  # TRL
    ("X3", "ratio_first_dev", lambda x: x > 0.2, 1),
    ("X10", "trunc_rate", lambda x: x > 0.15, 1),  # rl-doctor
    ("X14", "score_std", lambda x: x < 1e-8, 5),
)
"""Mode, metric, threshold, rollouts in a row: the defaults of the tools named."""


WITHOUT_RULE = {"fixed thresholds": {"M3"}, "plain Mann-Kendall": {"X1", "X2", "X3", "X10", "X14"}}
"""Modes of which a baseline here says nothing. (rl-doctor has a rule of its own for hacking, which is not among these.)"""


def fixed_thresholds(settings: RunSettings, records: list[Record]) -> Verdict:
    """Thresholds as other tools ship them."""
    alarms = {mode: _lasting(records, name, holds, times) for mode, name, holds, times in FIXED}
    return Verdict({mode: rollout for mode, rollout in alarms.items() if rollout is not None})


def plain_trends(settings: RunSettings, records: list[Record], bound: float = 2.58) -> Verdict:
    """A mode wherever the curve that names it has a significant trend over the last `BLOCK` rollouts."""
    verdict = Verdict()
    for end in range(BLOCK, len(records) + 1):
        window = records[end - BLOCK : end]
        z = {
            name: _trend(window, name) for name in ("kl_ref_seq", "entropy_tok", "score_mean", "value_loss", "quality")
        }
        seen = {
            "M1": z["kl_ref_seq"] > bound,
            "M2": z["entropy_tok"] < -bound,
            "M3": z["score_mean"] > bound and z["quality"] < 0,
            "M4": z["value_loss"] > bound,
            "M5": max(abs(z["kl_ref_seq"]), abs(z["score_mean"])) < 1.28,
        }
        for mode in (mode for mode, holds in seen.items() if holds):
            verdict.alarms.setdefault(mode, end)
    return verdict


def _trend(window: list[Record], name: str) -> float:
    values = [value for record in window if (value := record.get(name)) is not None]
    return mann_kendall_z(np.array(values)) if len(values) > 2 else 0.0


READERS: dict[str, Callable[[RunSettings, list[Record]], Verdict]] = {
    "diagnostics": diagnose,
    "fixed thresholds": fixed_thresholds,
    "plain Mann-Kendall": plain_trends,
}
