"""What a finding is worth: how often the oracle confirms it on the tune half. The diagnostics print it."""

import json
from pathlib import Path
from typing import Any

from rlhf_ext.diagnostics.confidence import LABELLED

from .labels import is_healthy, label
from .recipes import RECIPES
from .stored import read_rows


def calibration(folder: Path, verdicts: dict[str, Any]) -> dict[str, dict[str, list[int]]]:
    """
    Mode -> severity -> runs in which the finding was right, runs with it that failed, runs with it. A run that is neither
    healthy nor failed counts for nothing.

    Args:
        folder (`Path`): Runs of a split.
        verdicts (`dict`): What was said of them, by recipe and seed.
    """
    counts: dict[str, dict[str, list[int]]] = {}
    for run, verdict in verdicts.items():
        outcomes = read_rows(folder / run / "oracle.jsonl.gz")
        failures = {each.mode for each in label(outcomes, RECIPES[run.split("/")[0]].intent)}
        if not failures and not is_healthy(outcomes):
            continue
        for severity, modes in (("WARN", verdict["alarms"]), ("CRITICAL", verdict["critical"])):
            for mode in modes:
                count = counts.setdefault(mode, {}).setdefault(severity, [0, 0, 0])
                count[0] += LABELLED[mode] in failures if mode in LABELLED else bool(failures)
                count[1] += bool(failures)
                count[2] += 1
    return {mode: counts[mode] for mode in sorted(counts)}


def as_json(counts: dict[str, dict[str, list[int]]]) -> str:
    """One line a mode."""
    lines = [f"{json.dumps(mode)}: {json.dumps(by_severity)}" for mode, by_severity in counts.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def calibration_table(counts: dict[str, dict[str, list[int]]]) -> str:
    """One row a mode: runs in which its findings were right, that failed of anything, of all with it."""
    header = "| finding | its failure | WARN: runs that had it, that failed, of all | CRITICAL, likewise |"
    lines = [header, "|---|---|---|---|"]
    for mode, by_severity in counts.items():
        cells = [f"{c[0]}, {c[1]} of {c[2]}" if (c := by_severity.get(name)) else "" for name in ("WARN", "CRITICAL")]
        lines.append(f"| {mode} | {LABELLED.get(mode, 'any failure')} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)
