"""Each format is read back as it was written, as the tracker's own package writes it where that is installed."""

import csv
import json
import math
import struct

import logs
import pytest

from rlhf_ext import diagnose
from rlhf_ext.diagnostics import Record, RunSettings, Sample
from rlhf_ext.diagnostics.formats import json_files, open_log
from rlhf_ext.diagnostics.journal import record_line, settings_line

KL = [0.1 * step for step in range(1, 6)]


def rows(path, run=None):
    return [row.values for row in open_log(path, run).read()]


def kl_curve(diagnosis):
    return diagnosis.curves["kl_ref_seq"]


def test_trainer_state_with_nan_null_and_evaluation_rows(tmp_path):
    history = [logs.trl_ppo_row(step) for step in range(1, 6)]
    history[2]["loss/value_avg"] = math.nan
    history[3]["policy/approxkl_avg"] = None
    history.insert(3, {"eval_loss": 1.0, "eval_runtime": 2.0, "epoch": 0.03, "step": 3})
    path = logs.trainer_state(tmp_path / "trainer_state.json", history)
    assert "NaN" in path.read_text()
    read = rows(path)
    assert len(read) == 6
    assert math.isnan(read[2]["loss/value_avg"]) and math.isnan(read[4]["policy/approxkl_avg"])
    diagnosis = diagnose(tmp_path)
    assert diagnosis.rollouts == 5
    assert kl_curve(diagnosis) == ([1, 2, 3, 4, 5], pytest.approx(KL))
    assert diagnosis.episodes[0].finding.mode == "X1"


def test_a_trainer_state_is_read_in_pieces(tmp_path, monkeypatch):
    path = logs.trainer_state(tmp_path / "trainer_state.json", [logs.trl_ppo_row(step) for step in range(1, 40)])
    whole = json.loads(path.read_text())["log_history"]
    for size in (7, 100, 4096):
        monkeypatch.setattr(json_files, "_CHUNK", size)
        assert list(json_files.array_objects(path, '"log_history": [')) == whole


@pytest.mark.parametrize("size", range(1, 9))
def test_what_is_no_object_in_an_array_is_passed_over(size, tmp_path, monkeypatch):
    path = tmp_path / "rows.json"
    path.write_text('[1.5, "[", {"a": 1}, [2], null, {"b": {"c": "}"}}]')
    monkeypatch.setattr(json_files, "_CHUNK", size)
    assert list(json_files.array_objects(path, "[")) == [{"a": 1}, {"b": {"c": "}"}}]


def test_the_last_checkpoint_of_a_folder(tmp_path):
    for last in (2, 10):
        folder = tmp_path / f"checkpoint-{last}"
        folder.mkdir()
        logs.trainer_state(folder / "trainer_state.json", [logs.trl_ppo_row(step) for step in range(1, last + 1)])
    diagnosis = diagnose(tmp_path)
    assert diagnosis.last_step == 10 and "checkpoint-10" in " ".join(diagnosis.notes)


def test_our_journal_round_trip(tmp_path):
    sample = Sample("p", "c", 1.5)
    record = Record(8, {"kl_ref_seq": 2.5, "value_loss": math.nan}, {"kl_ref_seq": "derived"}, (sample,))
    settings = RunSettings(kl_target=6.0, kl_unit="sequence", value_clip_range=math.inf, planned_rollouts=100)
    path = tmp_path / "diagnostics.jsonl"
    path.write_text(settings_line(settings) + record_line(record))
    for line in path.read_text().splitlines():
        json.loads(line, parse_constant=pytest.fail)
    source = open_log(tmp_path)
    (row,) = source.read()
    assert row.values["kl_ref_seq"] == 2.5 and math.isnan(row.values["value_loss"])
    assert row.samples == (sample,) and row.provenance == {"kl_ref_seq": "derived"}
    diagnosis = diagnose(path)
    assert diagnosis.settings == settings
    assert [key.provenance for key in diagnosis.mapping if key.name == "kl_ref_seq"] == ["derived"]
    assert diagnose(path, RunSettings(kl_target=3.0)).settings.kl_target == 3.0


def test_tensorboard_files_of_a_resumed_run(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    writer.add_text("args", json.dumps({"learning_rate": 1e-5, "kl_target": 6.0, "kl_unit": "sequence"}))
    for step in range(1, 6):
        for key, value in logs.trl_ppo_row(step).items():
            writer.add_scalar(f"train/{key}", value, step)
    writer.add_scalar("train/objective/kl", math.nan, 5)
    writer.close()
    # A resume from step 3 begins another file.
    writer = tensorboard.SummaryWriter(str(tmp_path), filename_suffix=".later")
    for step in range(4, 7):
        for key, value in logs.trl_ppo_row(step, **{"objective/kl": 50.0}).items():
            writer.add_scalar(f"train/{key}", value, step)
    writer.close()
    diagnosis = diagnose(tmp_path)
    assert diagnosis.kind == "TensorBoard event files"
    steps, values = kl_curve(diagnosis)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert values == pytest.approx([0.1, 0.2, 0.3, 50, 50, 50])
    assert [segment.replaced for segment in diagnosis.segments] == [2, 0]
    assert diagnosis.settings.learning_rate == 1e-5 and diagnosis.settings.kl_target == 6.0


def test_tensorboard_scalars_of_the_newer_kind_and_a_file_cut_off(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    writer = tensorboard.SummaryWriter(str(tmp_path))
    for step in range(3):
        writer.add_scalar("new", step + 0.5, step, new_style=True)
        writer.add_scalar("double", step + 0.25, step, new_style=True, double_precision=True)
    writer.close()
    (path,) = tmp_path.iterdir()
    expected = [{"step": float(step), "new": step + 0.5, "double": step + 0.25} for step in range(3)]
    assert rows(path) == expected
    path.write_bytes(path.read_bytes()[:-5])
    source = open_log(path)
    assert [row.values for row in source.read()] == [*expected[:2], {"step": 2.0, "new": 2.5}]
    assert any("cut off" in note for note in source.notes)


def test_the_runs_of_a_tensorboard_folder(tmp_path):
    tensorboard = pytest.importorskip("torch.utils.tensorboard")
    for run in ("a", "b"):
        writer = tensorboard.SummaryWriter(str(tmp_path / run))
        for step in range(1, 4):
            for key, value in logs.trl_ppo_row(step, **{"objective/kl": ord(run)}).items():
                writer.add_scalar(key, value, step)
        writer.close()
    with pytest.raises(ValueError, match=r"2 runs; name one \(--run\): a, b"):
        diagnose(tmp_path)
    assert kl_curve(diagnose(tmp_path, run="b")).values == [98.0] * 3
    with pytest.raises(ValueError, match="no run 'c'"):
        diagnose(tmp_path, run="c")


def test_trackio(tmp_path):
    logged = [
        (i, {f"train/{key}": value for key, value in logs.trl_ppo_row(2 * i).items() if key != "step"})
        for i in range(1, 4)
    ]
    for (_, metrics), step in zip(logged, (2, 4, 6), strict=True):
        metrics["train/global_step"] = step
    logged[1][1]["train/loss/value_avg"] = "NaN"
    config = {
        "learning_rate": 3e-6,
        "num_ppo_epochs": 4,
        "cliprange": 0.2,
        "kl_coef": 0.05,
        "bf16": True,
        "fp16": False,
    }
    path = logs.trackio_project(tmp_path / "project.db", {"one": logged, "two": logged[:1]}, config)
    with pytest.raises(ValueError, match="name one"):
        diagnose(path)
    diagnosis = diagnose(tmp_path, run="one")
    assert kl_curve(diagnosis) == ([2, 4, 6], pytest.approx([0.2, 0.4, 0.6]))
    assert math.isnan(diagnosis.curves["value_loss"].values[1])
    known = diagnosis.settings
    assert (known.num_epochs, known.epsilon, known.beta, known.dtype) == (4, 0.2, 0.05, "bfloat16")
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(ValueError, match="no project of trackio"):
        diagnose(path)


def test_wandb_file_across_blocks(tmp_path):
    # Rows of 3 kB, so that some records go over the end of a block.
    history = [
        {f"train/{key}": value for key, value in logs.trl_ppo_row(step).items() if key != "step"}
        | {"train/global_step": step, "_step": 7 * step, "table": {"_type": "table", "path": "x" * 3000}}
        for step in range(1, 60)
    ]
    path = logs.wandb_file(tmp_path / "run-a.wandb", history, {"kl_coef": 0.05, "_wandb": {}})
    diagnosis = diagnose(tmp_path)
    assert diagnosis.kind == "W&B run file" and diagnosis.settings.beta == 0.05
    assert kl_curve(diagnosis).steps == list(range(1, 60))
    assert kl_curve(diagnosis).values == pytest.approx([0.1 * step for step in range(1, 60)])
    path.write_bytes(path.read_bytes()[:-100])
    cut = diagnose(path)
    assert cut.last_step == 58 and any("cut off" in note for note in cut.notes)


@pytest.mark.parametrize("left", range(8))
def test_wandb_records_at_the_end_of_a_block(left, tmp_path):
    """Fewer than 7 bytes before the end of a block are left empty."""

    def write(length):
        return logs.wandb_file(tmp_path / "run-a.wandb", [{"x": 1, "text": "x" * length}], {})

    length = 20_000 + 2**15 - left - write(20_000).stat().st_size
    assert write(length).stat().st_size == 2**15 - left
    history = [{"x": 1, "text": "x" * length}, {"x": 2}, {"x": 3}]
    path = logs.wandb_file(tmp_path / "run-a.wandb", history, {})
    assert rows(path) == [{"x": 1.0}, {"x": 2.0}, {"x": 3.0}]


def test_a_wandb_number_of_too_few_bytes_is_none(tmp_path):
    more = [logs.wandb_number("x", struct.pack("<d", 2.5)), logs.wandb_number("x", b"\0\0\0")]
    path = logs.wandb_file(tmp_path / "run-a.wandb", [{"x": 1}], {}, more)
    assert rows(path) == [{"x": 1.0}, {"x": 2.5}, {}]


def test_wandb_csv_of_a_history_and_of_a_chart(tmp_path):
    history = [logs.trl_ppo_row(step) for step in range(1, 6)]
    path = tmp_path / "history.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["_step", *(f"train/{key}" for key in history[0])])
        writer.writeheader()
        for i, row in enumerate(history):
            writer.writerow({"_step": i} | {f"train/{key}": value for key, value in row.items()})
            writer.writerow({"_step": i})
    path.write_text(path.read_text().replace("train/step", "train/global_step"))
    assert kl_curve(diagnose(path)) == ([1, 2, 3, 4, 5], pytest.approx(KL))

    chart = tmp_path / "chart.csv"
    keys = ("objective/kl", "objective/scores", "objective/rlhf_reward")
    header = [f"run {r} - train/{key}{end}" for r in "ab" for key in keys for end in ("", "__MIN", "__MAX")]
    with chart.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Step", *header])
        for step in range(1, 6):
            writer.writerow([step, *(i + step for i in range(len(header)))])
    with pytest.raises(ValueError, match="run a, run b"):
        diagnose(chart)
    assert kl_curve(diagnose(chart, run="run b")).values == [10, 11, 12, 13, 14]


def test_wandb_json_history(tmp_path):
    history = [logs.trl_ppo_row(step, **{"loss/value_avg": "NaN"}) for step in range(1, 4)]
    path = tmp_path / "history.json"
    path.write_text(json.dumps(history))
    assert math.isnan(diagnose(path).curves["value_loss"].values[0])


def test_verl_console_among_everything_else(tmp_path):
    noise = "(WorkerDict pid=12) INFO 01-01 step: - loading\nstep:7 is not a row\n"
    text = noise * 3000
    for step in range(1, 4):
        text += f"\x1b[36m(main_task pid=77)\x1b[0m {logs.verl_line(step, logs.VERL_OLD_ROW)}\n{noise}"
    path = tmp_path / "train.log"
    path.write_text(text)
    diagnosis = diagnose(path)
    assert diagnosis.framework == "verl (older names)" and diagnosis.rollouts == 3
    # 0.05 nats a token over 120 tokens.
    assert kl_curve(diagnosis) == ([1, 2, 3], pytest.approx([6.0] * 3))
    # Logged as 0.010 under a key that says the factor.
    assert diagnosis.curves["lr"].values == pytest.approx([1e-6] * 3)


def test_verl_file_logger_writes_nan_as_null(tmp_path):
    log = [{"step": step, "data": logs.VERL_NEW_ROW | {"critic/vf_loss": None}} for step in range(1, 4)]
    diagnosis = diagnose(logs.write_lines(tmp_path / "exp.jsonl", log))
    assert diagnosis.kind == "verl file logger (JSONL)" and diagnosis.framework == "verl"
    assert all(map(math.isnan, diagnosis.curves["value_loss"].values))
