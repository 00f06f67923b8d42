"""The demo from end to end on a tiny model in place of the real one."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlhf_ext.demo import __main__ as demo
from rlhf_ext.demo import report, stages
from rlhf_ext.demo.settings import DemoSettings

SMALL = DemoSettings(num_rollouts=5, max_new_tokens=4, kl_target=0.5)


@pytest.fixture
def tiny_demo(monkeypatch, tiny_policy_path):
    """Tiny model, few prompts, and a gold score that random letters can move."""
    import rlhf_ext.demo.model

    def bundled(folder):
        if not Path(folder).exists():
            shutil.copytree(tiny_policy_path, folder)
        return Path(folder)

    train = [f"My {word} number {i} is" for word in ("cat", "dog") for i in range(20)]
    held_out = [f"A bird number {i} was" for i in range(12)]
    monkeypatch.setattr(rlhf_ext.demo.model, "bundled_model", bundled)
    monkeypatch.setattr(stages, "demo_prompts", lambda: (train, held_out))
    monkeypatch.setattr(stages, "gold_scores", lambda texts: [sum(ord(c) % 5 for c in t) / 8 - 1 for t in texts])


@pytest.mark.usefixtures("tiny_demo")
def test_the_demo_runs_reports_and_continues(tmp_path, capsys, monkeypatch):
    folder = tmp_path / "run"
    demo.run(folder, SMALL)
    shown = capsys.readouterr().out
    text = (folder / "report.md").read_text()
    assert text in shown
    assert (folder / "curves.png").stat().st_size > 10_000
    history = json.loads((folder / "history.json").read_text())
    assert len(history) == 5
    assert sum(line.lstrip().split()[0].isdigit() for line in shown.splitlines() if line.strip()) >= 5
    before, after = (json.loads((folder / name).read_text()) for name in ("before.json", "after.json"))
    assert len(before) == len(after) == 24
    assert before != after
    card = json.loads((folder / "reward_model" / "report_card.json").read_text())
    assert card["normalization"]["score_std"] > 0
    for name in (
        "policy/adapter_model.safetensors",
        "policy/critic/value_head.safetensors",
        "reward_model/model.safetensors",
    ):
        assert (folder / name).is_file()

    # A second run finds everything done: no stage may sample or train again.
    monkeypatch.setattr(stages, "sample_completions", lambda *_, **__: pytest.fail("sampled again"))
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    demo.run(folder, SMALL)
    assert capsys.readouterr().out.count("(done before)") == 5
    assert kept == {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


@pytest.mark.usefixtures("tiny_demo")
def test_an_interrupted_run_goes_on_from_its_last_checkpoint(tmp_path, monkeypatch):
    from transformers import TrainerCallback

    folder = tmp_path / "run"
    monkeypatch.setattr(stages, "CHECKPOINT_EVERY", 2)

    class Interrupt(TrainerCallback):
        def on_log(self, args, state, control, **kwargs):
            if state.global_step >= 3 * args.updates_per_rollout:
                raise KeyboardInterrupt

    table = demo.table_callback
    monkeypatch.setattr(demo, "table_callback", Interrupt)
    with pytest.raises(KeyboardInterrupt):
        demo.run(folder, SMALL)
    assert not (folder / "history.json").exists()
    updates = SMALL.rollout_size // stages.MINIBATCH * stages.PPO_EPOCHS
    assert (folder / "ppo_training" / f"checkpoint-{2 * updates}").is_dir()
    monkeypatch.setattr(demo, "table_callback", table)
    demo.run(folder, SMALL)
    history = json.loads((folder / "history.json").read_text())
    assert [row["step"] for row in history] == [updates * i for i in range(1, 6)]


@pytest.mark.usefixtures("tiny_demo")
def test_a_reward_model_that_was_saved_by_half_does_not_count_as_done(tmp_path, monkeypatch):
    from rlhf_ext import RewardTrainer

    def interrupted(self, output_dir, *_):
        self.model.save_pretrained(output_dir)
        raise KeyboardInterrupt  # before the tokenizer

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "align", stop)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RewardTrainer, "save_model", interrupted)
        demo.run(tmp_path, SMALL)
    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path, SMALL)
    saved = {path.name for path in (tmp_path / "reward_model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "report_card.json"} <= saved


def test_another_runs_folder_is_refused(tmp_path, capsys):
    stages.open_run(tmp_path / "run", SMALL)
    stages.open_run(tmp_path / "run", SMALL)
    with pytest.raises(ValueError, match=r"'seed': \(0, 3\)"):
        stages.open_run(tmp_path / "run", replace(SMALL, seed=3))
    with pytest.raises(SystemExit, match="2"):
        demo.main(["--output", str(tmp_path / "run"), "--seed", "3"])
    assert "--fresh" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollouts", "0"], "--rollouts: must be a whole number of at least 1, got '0'"),
        (["--output", __file__], "is a file"),
    ],
)
def test_arguments_that_cannot_work_are_refused_at_once(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        demo.main(arguments)
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    with pytest.raises(SystemExit, match="130"):
        demo.main(["--output", str(tmp_path / "run")])
    assert "goes on from there" in capsys.readouterr().out


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        found = report.interval(rng.normal(0.3, 1.0, size=60), seed=trial)
        hits += found.low <= 0.3 <= found.high
    assert 0.90 <= hits / 200 <= 0.985
