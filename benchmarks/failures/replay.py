"""Verdicts on the stored runs as a committed file, so that one that moves is seen in review."""

import json
from pathlib import Path
from typing import Any

from rlhf_ext.diagnostics.confidence import TABLE

from .calibrate import as_json, calibration
from .recipes import split_of
from .verdicts import diagnose, load

VERDICTS = Path(__file__).parent / "verdicts.json"
SPLITS = ("tune", "test", "demo")


def replay(folder: Path) -> dict[str, Any]:
    """What the diagnostics say of every run under a folder, by recipe and seed, which no two splits share."""
    paths = sorted(folder.glob("*/*/records.jsonl.gz"))
    return {f"{path.parts[-3]}/{path.parts[-2]}": diagnose(*load(path)).as_row() for path in paths}


def write_verdicts(runs: Path) -> None:
    """Accept the present verdicts, one line a run, and how often they are right on the tune half."""
    of_split = {split: replay(runs / split) for split in SPLITS}
    verdicts = {run: verdict for found in of_split.values() for run, verdict in found.items()}
    lines = [f"{json.dumps(run)}: {json.dumps(verdict)}" for run, verdict in verdicts.items()]
    VERDICTS.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    TABLE.write_text(as_json(calibration(runs / "tune", of_split["tune"])), encoding="utf-8")


def committed(split: str) -> dict[str, Any]:
    """The committed verdicts of a split."""
    verdicts = json.loads(VERDICTS.read_text(encoding="utf-8"))
    return {run: verdict for run, verdict in verdicts.items() if split_of(*_key(run)) == split}


def _key(run: str) -> tuple[str, int]:
    recipe, seed = run.split("/")
    return recipe, int(seed)


def moved(runs: Path) -> list[str]:
    """One line for each verdict that is not the committed one."""
    before = {run: verdict for split in SPLITS for run, verdict in committed(split).items()}
    now = {run: verdict for split in SPLITS for run, verdict in replay(runs / split).items()}
    return [
        f"{run}: was {before.get(run)}, is {now.get(run)}"
        for run in sorted(before.keys() | now.keys())
        if before.get(run) != now.get(run)
    ]
