"""State, memory, order of findings, bad numbers, and how a finding opens and closes."""

import itertools
import json
import math

import numpy as np
import pytest
from runs import healthy, modes, noise, records, settings, watch

from rlhf_ext.diagnostics import METRICS, Diagnostics, Record, RunSettings, Severity
from rlhf_ext.diagnostics.detector import Detector, Rule, Verdict
from rlhf_ext.diagnostics.finding import Finding
from rlhf_ext.diagnostics.history import History, Windows
from rlhf_ext.diagnostics.updates import count_swings


def broken(n=130):
    """Several modes, a resume, a jump of beta and samples, in a short run."""
    columns = healthy(n)
    late = np.clip((np.arange(n) - 60) / 20, 0, 1)
    columns["kl_ref_seq"] = columns["kl_ref_seq"] + 30 * late
    columns["kl_update"] = columns["kl_update"] + 0.06 * late
    columns["dup_frac"] = columns["dup_frac"] + 0.6 * late
    columns["value_loss"] = columns["value_loss"] * np.exp(3 * late)
    columns["beta"][90:] *= 2
    columns["policy_loss"][110] = np.nan
    rollouts = list(records(columns))
    return rollouts[:100] + rollouts[95:]


def test_a_split_run_continues_bit_for_bit_at_every_record():
    rollouts = broken()
    whole, states, events = Diagnostics(settings(planned_rollouts=130)), [], []
    for record in rollouts:
        states.append(json.dumps(whole.state_dict(), allow_nan=False))
        events.append(whole.observe(record))
    assert len({e.finding.mode for step in events for e in step}) >= 4
    end = json.dumps(whole.state_dict())
    for k, state in enumerate(states):
        resumed = Diagnostics(settings(planned_rollouts=130))
        resumed.load_state_dict(json.loads(state))
        assert json.dumps(resumed.state_dict()) == state
        # To the next saved state one step is enough: from there on, equality of states carries.
        assert resumed.observe(rollouts[k]) == events[k]
        assert json.dumps(resumed.state_dict()) == (states[k + 1] if k + 1 < len(states) else end)
    assert resumed.open_findings == whole.open_findings


def test_a_state_of_another_version_is_refused():
    state = Diagnostics().state_dict()
    with pytest.raises(ValueError, match="version 99"):
        Diagnostics().load_state_dict(state | {"version": 99})


def test_memory_does_not_grow_with_the_run():
    diagnostics = Diagnostics()
    window = diagnostics.history.windows.window
    sizes = []
    for step in range(1, 6 * window):
        diagnostics.observe(Record(step, {"score_mean": math.sin(step), "kl_ref_seq": 1.0}))
        state = diagnostics.history.state_dict()["series"]
        sizes.append(max(len(column[0]) for column in state.values()))
    assert max(sizes) == 2 * window
    values = diagnostics.history.values("score_mean", 10)
    np.testing.assert_array_equal(values, [math.sin(step) for step in range(6 * window - 10, 6 * window)])


BAD = [float("nan"), float("inf"), -float("inf"), None, 0.0, -1e308, 1e308, 1e-308]


def test_nothing_is_raised_whatever_the_numbers():
    rng = np.random.default_rng(0)
    for seed in range(12):
        diagnostics = Diagnostics(settings() if seed else None)
        for step in range(260):
            names = rng.permutation(list(METRICS))[: rng.integers(0, len(METRICS))]
            values = {
                str(n): BAD[rng.integers(len(BAD))] if rng.random() < 0.5 else float(rng.normal()) for n in names
            }
            diagnostics.observe(
                Record(int(rng.integers(0, 3 * step + 1)) if rng.random() < 0.02 else 3 * step, values)
            )
        json.dumps(diagnostics.state_dict(), allow_nan=False)
        assert diagnostics.open_findings is not None and diagnostics.abstentions is not None


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e308])
def test_nothing_is_raised_on_constants(value):
    diagnostics = Diagnostics(settings())
    for step in range(250):
        diagnostics.observe(Record(step, dict.fromkeys(METRICS, value)))
    assert diagnostics.open_findings


def test_a_record_of_nothing_is_taken():
    diagnostics = Diagnostics()
    assert diagnostics.observe(Record(1, {})) == []
    assert diagnostics.abstentions["M1"] == ("kl_ref_seq|kl_ref_tok", "score_mean", "score_std")


def test_too_large_updates_are_primary_and_what_follows_is_a_consequence():
    columns = healthy()
    late = np.clip((np.arange(240) - 110) / 40, 0, 1)
    rng = np.random.default_rng(1)
    columns["kl_update"] += 0.2 * late
    columns["kl_ref_seq"] += 60 * late
    columns["dup_frac"] += 0.6 * late
    columns["entropy_tok"] *= np.exp(-3 * late)
    columns["score_mean"] = 1.4 + noise(rng, 240, 0.12)
    diagnostics, events = watch(columns)
    assert {"X6", "M1", "M2"} <= modes(events)
    assert [f.mode for f in diagnostics.open_findings][:3] == ["X6", "M1", "M2"]
    assert len(diagnostics.groups) == 1


def test_what_is_only_worth_knowing_is_never_primary_and_far_apart_is_not_one_cause():
    columns = healthy(400)
    time = np.arange(400)
    columns["kl_update"] = np.where(time > 100, 0.03, 0.004)
    columns["kl_ref_seq"] = columns["kl_ref_seq"] + 30.0 * (time > 110)
    columns["rep4"] = columns["rep4"] + 0.5 * (time > 300)
    diagnostics, _ = watch(columns, planned_rollouts=400)
    assert [[f.mode for f in group] for group in diagnostics.groups] == [["M1", "X6"], ["X11"]]
    # Late and early by precedence, late and worst: the worst first.
    columns["explained_var"] = np.where(time > 250, -0.5, 0.5)
    diagnostics, _ = watch(columns, planned_rollouts=400)
    assert [group[0].mode for group in diagnostics.groups][:2] == ["X7", "M1"]
    assert diagnostics.groups[0][0].severity == Severity.CRITICAL


def test_findings_survive_json():
    diagnostics, _ = watch(healthy() | {"kl_update": np.full(240, 0.2)})
    (finding, *_) = diagnostics.open_findings
    assert Finding.from_dict(json.loads(json.dumps(finding.as_dict(), allow_nan=False))) == finding


class Level(Detector):
    """Positive where reward_mean says so: 1 INFO, 2 WARN, 3 CRITICAL."""

    mode = "T"

    def list_rules(self):
        return (Rule("level", self._level, ("reward_mean",), always=True),)

    def _level(self, history):
        value = history.now("reward_mean")
        return Verdict(Severity(int(value)), "t", "s", (history.evidence("reward_mean", ""),)) if value else None

    def causes(self, history):
        return []


def episodes(levels):
    """What happens to a finding when the levels are seen one after another: (row, kind, severity)."""
    own = RunSettings(planned_rollouts=200)
    history, detector, seen = History(own), Level(own), []
    for row, level in enumerate(levels):
        history.add(Record(row, {"reward_mean": float(level)}))
        seen += [(row, e.kind, e.finding.severity.name) for e in detector.observe(history)]
    return seen


def test_three_positive_tests_open_and_five_negative_close():
    assert episodes([2, 2, 0, 2, 2]) == []
    assert episodes([2, 2, 2, 2]) == [(2, "opened", "WARN")]
    assert episodes([2, 2, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0]) == [(2, "opened", "WARN")]
    assert episodes([2, 2, 2, 0, 0, 0, 0, 0]) == [(2, "opened", "WARN"), (7, "closed", "WARN")]


def test_it_escalates_after_three_at_the_higher_level_and_never_comes_down():
    assert episodes([2, 2, 2, 3, 3, 1, 3, 3, 3, 1, 1, 1]) == [(2, "opened", "WARN"), (8, "escalated", "CRITICAL")]
    assert episodes([1, 3, 2]) == [(2, "opened", "INFO")]


def test_after_closing_it_rests_for_half_a_window_unless_it_is_worse():
    closed = [2, 2, 2, 0, 0, 0, 0, 0]
    assert Windows.of(RunSettings(planned_rollouts=200)).window == 30
    assert episodes([*closed, *[2] * 20])[2:] == [(7 + 15, "opened", "WARN")]
    assert episodes([*closed, *[3] * 4])[2:] == [(10, "opened", "CRITICAL")]


def test_windows_by_hand():
    assert Windows.of(RunSettings(planned_rollouts=400)) == Windows(window=60, warmup=20, every=5)
    assert Windows.of(RunSettings(planned_rollouts=100, critic_warmup_rollouts=15)) == Windows(30, 25, 2)
    assert Windows.of(RunSettings(planned_rollouts=5000)) == Windows(100, 250, 8)
    assert Windows.of(RunSettings()) == Windows(60, 10, 5)


def test_the_reference_is_the_first_half_window_after_warm_up_and_learned_anew_on_request():
    history = History(RunSettings(planned_rollouts=200))
    for row in range(100):
        history.add(Record(row, {"score_std": float(row), "value_loss": float(row), "beta": 0.1 if row < 50 else 0.2}))
        assert (history.reference("score_std") is None) == (row < 24)
    # Rows 10 to 24; the critic's after beta doubled in row 50: rows 50 to 64.
    assert history.reference("score_std").median == 17
    assert history.reference("value_loss").median == 57
    history.rearm()
    for row in range(100, 120):
        history.add(Record(row, {"score_std": 1000.0 + row}))
    assert history.reference("score_std").median == 1107


def test_a_change_is_that_of_the_fifths_of_the_window_without_the_warm_up():
    history = History(RunSettings(planned_rollouts=200))
    for row in range(40):
        history.add(Record(row, {"score_mean": -1000.0 if row < 10 else float(row)}))
        assert (history.change("score_mean") is None) == (row < 19)
    # Rows 10 to 39: medians of 10 to 15 and of 34 to 39, although the window of 60 reaches into the warm-up.
    change = history.change("score_mean", 60)
    assert (change.before, change.after) == (12.5, 36.5)
    assert change.z == pytest.approx(44 / math.sqrt(125))
    assert change.improved and not change.fell and change.growth == 36.5 / 12.5


def test_swings_are_turns_of_at_least_the_size_given():
    zigzag = list(itertools.chain(*([0.0, 1.0] for _ in range(4))))
    assert count_swings(np.array(zigzag), 0.9) == 6
    assert count_swings(np.array(zigzag), 1.1) == 0
    assert count_swings(np.array([0.0, 1, 0.5, 1.5, 0.2]), 0.9) == 1
