"""Reads the signals of an RLHF run and names the failure, its cause and the cure. Standard library and numpy only."""

from .diagnosis import Diagnosis, diagnose
from .engine import Diagnostics
from .finding import Cause, Event, Evidence, Finding, Severity
from .preflight import preflight
from .record import METRICS, Metric, Record, RunSettings, Sample

__all__ = [
    "METRICS",
    "Cause",
    "Diagnosis",
    "Diagnostics",
    "Event",
    "Evidence",
    "Finding",
    "Metric",
    "Record",
    "RunSettings",
    "Sample",
    "Severity",
    "diagnose",
    "preflight",
]
