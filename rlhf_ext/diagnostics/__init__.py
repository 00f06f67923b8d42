"""Reads the signals of an RLHF run and names the failure, its cause and the cure. Standard library and numpy only."""

from .engine import Diagnostics
from .finding import Cause, Event, Evidence, Finding, Severity
from .preflight import preflight
from .record import METRICS, Metric, Record, RunSettings, Sample

__all__ = [
    "METRICS",
    "Cause",
    "Diagnostics",
    "Event",
    "Evidence",
    "Finding",
    "Metric",
    "Record",
    "RunSettings",
    "Sample",
    "Severity",
    "preflight",
]
