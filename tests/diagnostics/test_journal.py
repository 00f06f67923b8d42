"""Samples and actions of a journal, through resumes and crashes."""

from rlhf_ext.diagnostics import Record, RunSettings, Sample
from rlhf_ext.diagnostics.journal import action_line, probe_line, read_told, record_line, settings_line
from rlhf_ext.diagnostics.remedies import Action


def rollout(step, name):
    return record_line(Record(step, {"score_mean": 1.0}, samples=(Sample("p", f"{name}{step}", 1.0),)))


def probe(step, name):
    return probe_line(step, [Sample("held out", f"{name}{step}", None)])


def acted(step, name):
    return action_line(step, Action("beta", 2.0, "M1", "drift", step, 1, "kl_ref_seq", None), name)


def told(tmp_path, *lines):
    (tmp_path / "diagnostics.jsonl").write_text("".join(lines))
    return read_told(tmp_path / "diagnostics.jsonl")


def texts(found):
    return (
        [s.completion for s in found.before],
        [s.completion for s in found.after],
        [a["result"] for a in found.actions],
    )


def test_first_and_last_rollout_are_shown_where_there_is_no_probe(tmp_path):
    found = told(tmp_path, settings_line(RunSettings()), *(rollout(step, "a") for step in (2, 4, 6)), acted(6, "up"))
    assert texts(found) == (["a2"], ["a6"], ["up"]) and not found.same_prompts


def test_a_probe_is_preferred_once_there_are_two(tmp_path):
    lines = [rollout(2, "a"), probe(2, "q"), rollout(4, "a")]
    assert texts(told(tmp_path, *lines))[1] == ["a4"]
    found = told(tmp_path, *lines, rollout(6, "a"), probe(6, "q"))
    assert texts(found)[:2] == (["q2"], ["q6"]) and found.same_prompts


def test_what_a_resume_wrote_again_replaces_what_was_there(tmp_path):
    first = [
        rollout(2, "a"),
        probe(2, "q"),
        rollout(4, "a"),
        acted(4, "up"),
        rollout(6, "a"),
        probe(6, "q"),
        acted(6, "x"),
    ]
    resumed = [settings_line(RunSettings()), rollout(6, "b"), probe(6, "r")]
    assert texts(told(tmp_path, *first, *resumed)) == (["q2"], ["r6"], ["up"])
    # A new run in the same folder replaces everything.
    assert texts(told(tmp_path, *first, rollout(2, "n"), rollout(4, "n"))) == (["n2"], ["n4"], [])


def test_an_empty_journal_and_a_line_cut_off(tmp_path):
    assert texts(told(tmp_path, settings_line(RunSettings()))) == ([], [], [])
    assert texts(told(tmp_path, rollout(2, "a"), rollout(4, "a")[:30]))[:2] == (["a2"], ["a2"])
