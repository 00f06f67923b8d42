"""What findings were worth in the lab: counted by a command, told with each finding."""

import json
import sys
from pathlib import Path

import pytest
from runs import healthy, opening, watch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures.calibrate import as_json, calibration, calibration_table
from benchmarks.failures.replay import committed
from benchmarks.failures.stored import RUNS, write_rows
from rlhf_ext.diagnostics import Severity
from rlhf_ext.diagnostics.confidence import TABLE, Confidence, confidence
from rlhf_ext.diagnostics.finding import Finding


def test_the_committed_counts_are_those_of_the_committed_verdicts():
    verdicts = committed("tune")
    assert TABLE.read_text(encoding="utf-8") == as_json(calibration(RUNS / "tune", verdicts))


def row(rollout, gold, kl=4.0):
    same = {"gold_sd": 0.5, "proxy": 0.0, "score_sd": 1.0, "duplicates": 0.0, "reliability": 1.0}
    return {"rollout": rollout, "gold": gold, "kl": kl, "mc_ev": 0.3, "mc_r2": 0.3, **same}


@pytest.fixture
def counted(tmp_path):
    """A run that drifts, a healthy one, one that is neither, all warned of drift and of large updates."""
    golds = {
        "drift-rate/0": [0.0, 0.5, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5],
        "base/0": [0.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
        "base/1": [0.0, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2],
    }
    for run, gold in golds.items():
        write_rows(tmp_path / run / "oracle.jsonl.gz", [row(10 * i, g, 4.0 * i) for i, g in enumerate(gold)])
    said = {"alarms": {"M1": 10, "M2": 20, "X6": 5}, "critical": []}
    return calibration(tmp_path, {"drift-rate/0": {**said, "critical": ["M1"]}, "base/0": said, "base/1": said})


def test_counts_by_hand(counted):
    # The collapse that was warned of was drift; the run that is neither healthy nor failed counts for nothing.
    assert counted == {
        "M1": {"WARN": [1, 1, 2], "CRITICAL": [1, 1, 1]},
        "M2": {"WARN": [0, 1, 2]},
        "X6": {"WARN": [1, 1, 2]},
    }
    assert "| M1 | M1 | 1, 1 of 2 | 1, 1 of 1 |" in calibration_table(counted)


def test_words():
    assert str(Confidence(3, 5, 6, "M1")) == "In the lab 3 of 6 runs with such a finding had this failure, 2 another."
    assert str(Confidence(5, 5, 6, None)) == "In the lab 5 of 6 runs with such a finding failed."
    assert str(confidence("X99", "WARN")).startswith("Uncalibrated")


def test_a_finding_tells_it_and_keeps_it_out_of_its_state():
    columns = healthy()
    columns["score_std"] *= 0
    finding = opening(watch(columns)[1], "X14").finding
    right, failed, number = json.loads(TABLE.read_text(encoding="utf-8"))["X14"]["WARN"]
    assert finding.severity == Severity.WARN and finding.confidence == (right, failed, number, None)
    plain = json.loads(json.dumps(finding.as_dict()))
    assert plain["confidence"] == {"right": right, "failed": failed, "number": number, "failure": None}
    assert Finding.from_dict(plain) == finding
    assert Finding("M1", "t", Severity.INFO, 1, "s").confidence is None
