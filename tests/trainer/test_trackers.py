"""The trackers themselves, where they are installed: alerts arrive, and the run that they kept can be diagnosed."""

import sqlite3

import pytest

from rlhf_ext import PPOTrainer, diagnose


def constant(completions, **_):
    return [1.0] * len(completions)


def train(policy, prompts, ppo_config, tracker):
    args = ppo_config(beta=0.1, max_steps=24, report_to=tracker, run_name="still", logging_steps=1)
    trainer = PPOTrainer(policy, constant, args, prompts)
    trainer.train()
    return [row for row in trainer.state.log_history if "objective/score" in row]


def test_trackio(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setattr(trackio.sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio")
    logged = train(tiny_policy_path, prompts, ppo_config, "trackio")
    (database,) = (tmp_path / "trackio").rglob("*.db")
    with sqlite3.connect(database) as connection:
        alerts = list(connection.execute("SELECT title, text, level FROM alerts"))
    assert any(title.startswith("X14") and "Cure: " in text for title, text, _ in alerts)
    diagnosis = diagnose(database)
    assert "X14" in {episode.finding.mode for episode in diagnosis.episodes}
    assert diagnosis.rollouts == len(logged)


def test_wandb(tiny_policy_path, prompts, ppo_config, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    logged = train(tiny_policy_path, prompts, ppo_config, "wandb")
    wandb.finish()
    (file,) = tmp_path.rglob("*.wandb")
    assert b"X14 nothing to learn from" in file.read_bytes()
    diagnosis = diagnose(file)
    assert "X14" in {episode.finding.mode for episode in diagnosis.episodes}
    assert diagnosis.rollouts == len(logged)
