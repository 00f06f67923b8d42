"""Whole runs through all detectors."""

import json
import math

import numpy as np
import pytest

from rlhf_ext.diagnostics import Record, RunSettings, Severity
from rlhf_ext.diagnostics.engine import Diagnostics

SETTINGS = RunSettings(planned_rollouts=200, kl_target=6.0, kl_unit="sequence", num_epochs=2, rollout_size=64)


def healthy(seed=0, n=200):
    """Score rises, KL goes to its target, entropy falls as it does in runs that learn, the critic gets better."""
    noise = np.random.default_rng(seed)
    for i in range(n):
        rise = 1 - math.exp(-i / 60)
        yield {
            "score_mean": 0.2 + 1.5 * rise + 0.1 * noise.normal(),
            "score_std": 0.9 + 0.05 * noise.normal(),
            "kl_ref_seq": max(0.0, 6.0 * rise + 0.3 * noise.normal()),
            "kl_ref_tok": max(0.0, 0.3 * rise + 0.02 * noise.normal()),
            "kl_se": 0.3,
            "kl_target": 6.0,
            "beta": 0.1,
            "kl_update": 0.004 + 0.0005 * abs(noise.normal()),
            "entropy_tok": 2.5 - 1.0 * rise + 0.05 * noise.normal(),
            "value_loss": 0.5 * math.exp(-i / 50) + 0.1 + 0.01 * abs(noise.normal()),
            "return_var": 0.8,
            "explained_var": 0.6 * rise + 0.05 * noise.normal(),
            "pg_clipfrac": 0.02,
            "ratio_first_dev": 1e-6,
            "grad_norm": 1.0 + 0.1 * abs(noise.normal()),
            "len_mean": 20 + 0.5 * noise.normal(),
            "eos_rate": 0.95,
            "trunc_rate": 0.05,
        }


def observed(rows, settings=SETTINGS):
    engine = Diagnostics(settings)
    events = [event for i, row in enumerate(rows) for event in engine.observe(Record(i + 1, row))]
    return engine, events


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_raises_no_alarm(seed):
    _, events = observed(healthy(seed))
    assert not [e.finding.title for e in events if e.finding.severity >= Severity.WARN]


def test_a_kl_far_above_its_target_is_a_drift():
    rows = [row | {"kl_ref_seq": row["kl_ref_seq"] + max(0, i - 120) * 0.4} for i, row in enumerate(healthy())]
    engine, events = observed(rows)
    opened = [e for e in events if e.kind == "opened" and e.finding.mode == "M1"]
    # 1.5 times the target, which is 9 nats, is passed about row 130.
    assert opened and 125 <= opened[0].step <= 165
    assert any(finding.mode == "M1" for finding in engine.open_findings)


def test_a_number_that_is_not_finite_is_critical_at_once_and_comes_first():
    rows = list(healthy())
    rows[150]["value_loss"] = float("nan")
    engine, events = observed(rows[:151])
    (event,) = [e for e in events if e.finding.mode == "X1"]
    assert (event.step, event.finding.severity) == (151, Severity.CRITICAL)
    assert event.finding.summary == "At step 151: value_loss = nan. Everything learned from here on is lost."
    assert engine.open_findings[0].mode == "X1"


def test_what_is_not_logged_is_named():
    engine, events = observed([{"score_mean": row["score_mean"]} for row in healthy()])
    assert not events
    assert {"M1", "M2", "M4"} <= set(engine.abstentions)
    assert any("entropy_tok" in name for name in engine.abstentions["M2"])


@pytest.mark.parametrize("split", [1, 37, 131, 160])
def test_a_run_continued_from_its_state_is_the_same_run(split):
    rows = [row | {"kl_ref_seq": row["kl_ref_seq"] + max(0, i - 120) * 0.4} for i, row in enumerate(healthy())]
    _, whole = observed(rows)
    first, events = observed(rows[:split])
    second = Diagnostics(SETTINGS)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for i, row in enumerate(rows[split:], start=split):
        events += second.observe(Record(i + 1, row))
    assert whole and [(e.kind, e.step, e.finding) for e in events] == [(e.kind, e.step, e.finding) for e in whole]
