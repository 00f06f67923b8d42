"""Verdicts on the stored runs as a committed file, so that one that moves is seen in review."""

import json
from pathlib import Path
from typing import Any

from rlhf_ext.diagnostics.confidence import TABLE

from .calibrate import as_json, calibration
from .verdicts import diagnose, load

VERDICTS = Path(__file__).parent / "verdicts.json"


def replay(folder: Path) -> dict[str, Any]:
    """What the diagnostics say of every run under the folder of a split, by recipe and seed."""
    paths = sorted(folder.glob("*/*/records.jsonl.gz"))
    return {f"{path.parts[-3]}/{path.parts[-2]}": diagnose(*load(path)).as_row() for path in paths}


def write_verdicts(folder: Path) -> None:
    """Accept the present verdicts, one line a run, and how often they are right."""
    verdicts = replay(folder)
    lines = [f"{json.dumps(run)}: {json.dumps(verdict)}" for run, verdict in verdicts.items()]
    VERDICTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    TABLE.write_text(as_json(calibration(folder, verdicts)), encoding="utf-8")


def moved(folder: Path) -> list[str]:
    """One line for each verdict that is not the committed one."""
    committed, now = json.loads(VERDICTS.read_text(encoding="utf-8")), replay(folder)
    return [
        f"{run}: was {committed.get(run)}, is {now.get(run)}"
        for run in sorted(committed.keys() | now.keys())
        if committed.get(run) != now.get(run)
    ]
