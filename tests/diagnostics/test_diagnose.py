"""Diagnosis of finished runs: what is read as one run, what is refused, what comes out."""

import json
import math
import random
import re
import sqlite3
import subprocess
import sys
import tracemalloc
from html.parser import HTMLParser

import logs
import pytest
from runs import healthy, records, settings

from rlhf_ext import diagnose
from rlhf_ext.cli import main
from rlhf_ext.diagnostics import Diagnostics, Record, RunSettings, Sample, Severity
from rlhf_ext.diagnostics.journal import record_line, settings_line


def state(tmp_path, history):
    return logs.trainer_state(tmp_path / "trainer_state.json", history)


def drifting(n=240):
    """A run whose KL leaves its target while the score falls."""
    columns = healthy(n)
    for i in range(n // 3, n):
        columns["kl_ref_seq"][i] += 0.2 * (i - n // 3)
        columns["score_mean"][i] -= 0.02 * (i - n // 3)
    return columns


def journal(path, columns, samples=(), **changes):
    rows = [Record(record.step, record.values, {}, samples) for record in records(columns)]
    path.write_text(settings_line(settings(**changes)) + "".join(map(record_line, rows)), encoding="utf-8")
    return path


def test_the_verdict_is_that_of_the_live_engine(tmp_path):
    columns = drifting()
    diagnosis = diagnose(journal(tmp_path / "diagnostics.jsonl", columns))
    engine = Diagnostics(settings())
    events = [event for record in records(columns) for event in engine.observe(record)]
    assert events and diagnosis.events == tuple(events)
    assert {e.finding.mode for e in diagnosis.episodes if e.closed is None} == {f.mode for f in engine.open_findings}
    assert diagnosis.abstentions == engine.abstentions
    first = diagnosis.episodes[0]
    assert first.finding.mode == "M1" and first.finding.severity == diagnosis.worst >= Severity.WARN


def test_rows_after_a_resume_replace_those_before(tmp_path):
    before = [logs.trl_ppo_row(step, **{"objective/kl": 1.0}) for step in range(1, 31)]
    after = [logs.trl_ppo_row(step, **{"objective/kl": 2.0}) for step in range(21, 41)]
    diagnosis = diagnose(state(tmp_path, before + after))
    assert diagnosis.rollouts == 40 and diagnosis.settings.planned_rollouts == 40
    assert diagnosis.curves["kl_ref_seq"].values == [1.0] * 20 + [2.0] * 20
    assert [segment._asdict() for segment in diagnosis.segments] == [
        {"first_step": 1, "last_step": 30, "rows": 30, "replaced": 10},
        {"first_step": 21, "last_step": 40, "rows": 20, "replaced": 0},
    ]
    assert any("from 30 to 21" in note for note in diagnosis.notes)


def test_two_resumes_the_second_further_back(tmp_path):
    parts = [(1, 11, 1.0), (6, 16, 2.0), (3, 9, 3.0)]
    history = [logs.trl_ppo_row(s, **{"objective/kl": kl}) for first, end, kl in parts for s in range(first, end)]
    diagnosis = diagnose(state(tmp_path, history))
    assert diagnosis.curves["kl_ref_seq"] == (list(range(1, 9)), [1.0] * 2 + [3.0] * 6)
    assert [segment.replaced for segment in diagnosis.segments] == [8, 10, 0]


def test_a_step_logged_twice_counts_once(tmp_path):
    history = [logs.trl_ppo_row(step, **{"objective/kl": kl}) for step in (1, 2) for kl in (1.0, 2.0)]
    diagnosis = diagnose(state(tmp_path, history))
    assert diagnosis.curves["kl_ref_seq"] == ([1, 2], [2.0, 2.0])


def test_rows_of_optimizer_steps_belong_to_their_rollout(tmp_path):
    """One row per optimizer step: means, the largest ratio, NaN kept, the evaluation too."""
    history = []
    for rollout in range(3):
        step = 4 * rollout + 1
        update = [{"kl/update": 0.01 * i, "policy/ratio_max": r} for i, r in enumerate((1.0, 3.0, 2.0, 1.5))]
        if rollout == 2:
            update[1]["policy/ratio_max"] = math.nan
        first = {"objective/score": float(rollout), "kl/ref": 1.0, "policy/clip_fraction": 0.0}
        history += [{**(first if i == 0 else {}), **row, "step": step + i} for i, row in enumerate(update)]
        history.append({"eval_objective/score": 5.0 + rollout, "step": step + 3})
    history.append({"train_runtime": 1.0, "train_loss": 0.1, "step": 12})
    diagnosis = diagnose(state(tmp_path, history))
    assert diagnosis.framework == "rlhf_ext PPOTrainer" and diagnosis.rollouts == 3
    curves = diagnosis.curves
    assert curves["score_mean"] == ([1, 5, 9], [0.0, 1.0, 2.0])
    assert curves["kl_update"].values == pytest.approx([0.015] * 3)
    assert curves["ratio_max"].values[:2] == [3.0, 3.0] and math.isnan(curves["ratio_max"].values[2])
    assert curves["eval_score"].values == [5.0, 6.0, 7.0]


def test_long_runs_are_drawn_with_their_extremes(tmp_path):
    history = [logs.trl_ppo_row(step, **{"objective/kl": 1.0}) for step in range(1, 3001)]
    history[1234]["objective/kl"] = 99.0
    history[2003]["objective/kl"] = math.nan
    curve = diagnose(state(tmp_path, history)).curves["kl_ref_seq"]
    assert len(curve.steps) < 1300
    assert max(v for v in curve.values if v == v) == 99.0 and sum(map(math.isnan, curve.values)) == 1


def test_memory_does_not_grow_with_the_log(tmp_path):
    """A log of ten times the rows, each with much that is not read, takes about the same memory."""

    def peak(rows):
        path = tmp_path / f"{rows}.jsonl"
        with path.open("w") as file:
            for step in range(rows):
                file.write(json.dumps(logs.trl_ppo_row(step) | {"text": "x" * 20_000}) + "\n")
        tracemalloc.start()
        diagnose(path)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    # 6 MB more of text.
    assert peak(330) < peak(30) + 2**19


def test_a_line_that_does_not_end(tmp_path, monkeypatch):
    from rlhf_ext.diagnostics.formats import text

    monkeypatch.setattr(text, "LONGEST_LINE", 2**20)
    path = tmp_path / "endless.txt"
    path.write_text("x" * 2**21)
    with pytest.raises(ValueError, match="line 1 is longer than"):
        diagnose(path)


def test_steps_that_are_none_and_steps_that_fall(tmp_path):
    rows = [logs.trl_ppo_row(step) for step in range(1, 6)]
    for step in (math.nan, 1e30, "later"):
        diagnosis = diagnose(logs.write_lines(tmp_path / "log.jsonl", [row | {"step": step} for row in rows]))
        assert diagnosis.rollouts == 5 and "rows are numbered instead" in diagnosis.notes[0]
    with pytest.raises(ValueError, match="the step 'step' goes back at 4 of 5 rows"):
        diagnose(logs.write_lines(tmp_path / "log.jsonl", rows[::-1]))


def test_numbers_as_text_are_numbers(tmp_path):
    rows = [{key: str(value) for key, value in logs.trl_ppo_row(step).items()} for step in range(1, 4)]
    diagnosis = diagnose(logs.write_lines(tmp_path / "log.jsonl", rows))
    assert diagnosis.curves["kl_ref_seq"] == ([1, 2, 3], [0.1, 0.2, pytest.approx(0.3)])
    huge = logs.trl_ppo_row(1, **{"objective/kl": 10**400, "loss/value_avg": -(10**400)})
    curves = diagnose(logs.write_lines(tmp_path / "log.jsonl", [huge])).curves
    assert curves["kl_ref_seq"].values == [math.inf] and curves["value_loss"].values == [-math.inf]


def test_rows_that_lack_something_are_counted(tmp_path):
    path = logs.trackio_project(tmp_path / "p.db", {"a": [(1, logs.trl_ppo_row(1)), (2, logs.trl_ppo_row(2))]}, {})
    connection = sqlite3.connect(path)
    connection.execute("UPDATE metrics SET metrics = '{broken' WHERE step = 2")
    connection.commit()
    connection.close()
    diagnosis = diagnose(path)
    assert diagnosis.rollouts == 1 and diagnosis.notes[-1].startswith("1 row without a step or an object")


def some_logs(tmp_path):
    """A log of each format, with a resume and a sample in it."""
    rows = [logs.trl_ppo_row(step) for step in (*range(1, 9), *range(5, 12))]
    header = list(rows[0])
    text = "\n".join([",".join(header), *(",".join(str(row[key]) for key in header) for row in rows)])
    (tmp_path / "log.csv").write_text(text)
    (tmp_path / "verl.log").write_text("\n".join(logs.verl_line(step, logs.VERL_ROW) for step in range(1, 9)))
    samples = (Sample("p", "c", 1.0),)
    return [
        logs.trainer_state(tmp_path / "trainer_state.json", rows),
        logs.write_lines(tmp_path / "log.jsonl", rows),
        journal(tmp_path / "diagnostics.jsonl", healthy(12), samples),
        logs.trackio_project(tmp_path / "p.db", {"a": [(row["step"], row) for row in rows]}, {"learning_rate": 1e-5}),
        logs.wandb_file(tmp_path / "run.wandb", rows, {"learning_rate": 1e-5}),
        tmp_path / "log.csv",
        tmp_path / "verl.log",
    ]


def test_damaged_logs_are_read_or_refused_and_nothing_else(tmp_path):
    """Bytes changed, cut off and put in, at random: a diagnosis, or a sentence."""
    rng = random.Random(0)
    outcomes = {"read": 0, "refused": 0}
    for path in some_logs(tmp_path):
        whole = path.read_bytes()
        assert diagnose(path).rollouts >= 8
        for _ in range(40):
            data = bytearray(whole)
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(len(data))] = rng.randrange(256)
            data = data[: rng.choice((len(data), rng.randrange(len(data))))]
            place = rng.randrange(len(data) + 1)
            data[place:place] = rng.randbytes(rng.choice((0, 0, 5)))
            path.write_bytes(data)
            try:
                diagnose(path).to_text()
            except ValueError as error:
                assert str(path) in str(error)
                outcomes["refused"] += 1
            else:
                outcomes["read"] += 1
    assert min(outcomes.values()) > 20


def test_one_row(tmp_path):
    diagnosis = diagnose(state(tmp_path, [logs.trl_ppo_row(1)]))
    assert diagnosis.rollouts == 1 and diagnosis.worst is None and diagnosis.abstentions
    assert "1 rollout," in diagnosis.to_text() and "<svg" in diagnosis.to_html()


def test_a_line_cut_off_by_a_crash_is_left_out(tmp_path):
    path = logs.write_lines(tmp_path / "log.jsonl", [logs.trl_ppo_row(step) for step in range(1, 4)])
    path.write_text(path.read_text() + '{"step": 4, "objective/kl"')
    diagnosis = diagnose(path)
    assert diagnosis.rollouts == 3 and diagnosis.notes[-1].startswith("1 line that hold")


class _Page(HTMLParser):
    """Tags and attributes of a page; fails on a tag that is not closed."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.values = [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.values += [value for _, value in attributes]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_one_file_with_everything_escaped(tmp_path):
    evil = '<script>alert("1")</script>&amp;<img src=x onerror=alert(1)>'
    folder = tmp_path / "<script>run"
    folder.mkdir()
    samples = (Sample(evil, evil, 1.0),)
    path = journal(folder / "diagnostics.jsonl", drifting(), samples, kl_controller=evil)
    diagnosis = diagnose(path)
    page = _Page()
    page.feed(diagnosis.to_html())
    assert page.open == []
    assert not {"script", "img", "link", "iframe", "object"} & set(page.tags)
    assert not any(re.match(r"https?:|//|data:", str(value)) for value in page.values)
    assert "url(" not in diagnosis.to_html() and "@import" not in diagnosis.to_html()
    assert diagnosis.to_html().count("&lt;script&gt;alert(&quot;1&quot;)") >= 2
    # Each finding is marked on the curve that decided it.
    for episode in diagnosis.episodes:
        assert f"<title>{episode.finding.severity.name} {episode.finding.mode}: " in diagnosis.to_html()


def test_json_is_json(tmp_path):
    history = [logs.trl_ppo_row(step) for step in range(1, 80)]
    history[50]["loss/value_avg"] = math.nan
    diagnosis = diagnose(state(tmp_path, history), RunSettings(value_clip_range=math.inf))
    data = json.loads(diagnosis.to_json(), parse_constant=pytest.fail)
    assert data["worst"] == "CRITICAL" and data["settings"]["value_clip_range"] == "Infinity"
    assert data["episodes"][0]["finding"]["mode"] == "X1" and data["episodes"][0]["opened"] == 51
    assert data["episodes"][0]["finding"]["evidence"][0]["metric"] == "value_loss"
    assert len(data["mapping"]) == len(diagnosis.mapping)


@pytest.mark.parametrize(("fail_on", "code"), [(None, None), ("critical", None), ("warn", 1)])
def test_exit_status_for_ci(fail_on, code, tmp_path, capsys):
    columns = drifting()
    del columns["quality"]
    columns["score_mean"] = healthy()["score_mean"]
    path = journal(tmp_path / "diagnostics.jsonl", columns)
    assert diagnose(path).worst == Severity.WARN
    arguments = ["diagnose", str(path), "--html", str(tmp_path / "page.html"), "--json"]
    if code is None:
        main([*arguments, *(["--fail-on", fail_on] if fail_on else [])])
    else:
        with pytest.raises(SystemExit) as exit_:
            main([*arguments, "--fail-on", fail_on])
        assert exit_.value.code == code
    assert json.loads(capsys.readouterr().out)["worst"] == "WARN"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_settings_on_the_command_line(tmp_path, capsys):
    path = str(state(tmp_path, [logs.trl_ppo_row(step) for step in range(1, 90)]))
    main(["diagnose", path, "--json", "--kl_target", "2", "--kl_unit", "sequence", "--num_epochs", "4"])
    printed = capsys.readouterr().out
    assert printed.endswith("\n}\n")
    data = json.loads(printed)
    assert data["settings"]["kl_target"] == 2.0 and data["settings"]["num_epochs"] == 4
    for wrong, message in (
        (["--kl_target", "2"], "--kl_target 2 needs --kl_unit"),
        (["--target", "2"], "unknown option --target"),  # one name for one thing
        (["--key", "score_mean"], "--key takes METRIC=KEY"),
        (["--colour", "red"], "unknown option --colour"),
    ):
        with pytest.raises(SystemExit):
            main(["diagnose", path, *wrong])
        assert message in capsys.readouterr().err


def test_nothing_heavy_is_loaded(tmp_path):
    path = state(tmp_path, [logs.trl_ppo_row(step) for step in range(1, 80)])
    code = (
        "import sys\nfrom rlhf_ext.cli import main\n"
        f"main(['diagnose', {str(path)!r}, '--html', {str(tmp_path / 'p.html')!r}])\n"
        "print(*sys.modules, file=sys.stderr)"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr.split()
    heavy = {"torch", "transformers", "trl", "tensorboard", "pandas", "datasets", "matplotlib"}
    assert "rlhf_ext.diagnostics.engine" in loaded and not heavy & set(loaded)
