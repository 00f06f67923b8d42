"""A run of the lab, end to end, with models that were hardly trained."""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures import base, faults, produce, recipes, small, world
from benchmarks.failures.oracle import Notes, Oracle
from benchmarks.failures.stored import read_rows
from rlhf_ext.diagnostics import Record, RunSettings


@pytest.fixture
def small_world(monkeypatch, tmp_path):
    monkeypatch.setattr(base, "PRETRAINING_STEPS", 10)
    monkeypatch.setattr(base, "CRITIC_STEPS", 10)
    monkeypatch.setitem(base.REWARD_MODELS, "good", base.RewardModelKind(pairs=64, noise=0.0, epochs=1))
    for name in ("base-gold", "resume", "bug-nan"):
        monkeypatch.setitem(recipes.RECIPES, name, replace(recipes.RECIPES[name], rollouts=4))
    return small.SmallWorld(tmp_path / "cache")


def run(name, models, folder):
    world.run_one(name, 0, models, folder)
    return [(folder / f"{part}.jsonl.gz").read_bytes() for part in ("records", "oracle")]


def test_a_seed_gives_the_same_bytes_and_records_read_as_such(small_world, tmp_path):
    assert run("base-gold", small_world, tmp_path / "a") == run("base-gold", small_world, tmp_path / "b")
    header, *rows = read_rows(tmp_path / "a" / "records.jsonl.gz")
    assert RunSettings(**header["settings"]).rollout_size == 64
    records = [Record(row.pop("step"), row) for row in rows]
    assert [record.step for record in records] == [4, 8, 12, 16]
    assert records[0].values["kl_ref_seq"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1].values["kl_ref_seq"] != 0.0
    assert "gold" not in records[-1].values
    outcomes = read_rows(tmp_path / "a" / "oracle.jsonl.gz")
    assert [row["rollout"] for row in outcomes] == [0, 1, 4]
    assert outcomes[0]["kl"] == 0.0
    assert outcomes[-1]["kl"] > 0


def test_an_interrupted_run_has_the_records_of_one_that_was_not(small_world, tmp_path, monkeypatch):
    run("resume", small_world, tmp_path / "a")
    monkeypatch.setitem(recipes.RECIPES, "resume", replace(recipes.RECIPES["resume"], fault=None))
    run("resume", small_world, tmp_path / "b")
    resumed, whole = (read_rows(tmp_path / part / "records.jsonl.gz") for part in "ab")
    assert resumed == whole


def test_nan_scores_are_counted(small_world, tmp_path):
    run("bug-nan", small_world, tmp_path)
    counts = [row["nonfinite"] for row in read_rows(tmp_path / "records.jsonl.gz")[1:]]
    assert counts[:2] == [0, 0]
    assert sum(counts[2:]) > 0


def test_runs_that_exist_are_not_made_again(tmp_path, monkeypatch):
    monkeypatch.setattr(produce, "folder_of", lambda name, seed, acts=False: tmp_path / name / str(seed))
    names = ["base", "short"]
    assert produce.missing("tune", names)[:3] == [("base", 0), ("short", 0), ("base", 1)]
    assert {seed >= 10 for _, seed in produce.missing("test", names)} == {True}
    (tmp_path / "base" / "0").mkdir(parents=True)
    (tmp_path / "base" / "0" / "records.jsonl.gz").touch()
    assert produce.missing("tune", names)[:2] == [("short", 0), ("base", 1)]


class Trained:
    """What the oracle reads of a trainer."""

    def __init__(self, step=0, **args):
        self.args = SimpleNamespace(**{"missing_eos_penalty": None, "score_clip": None} | args)
        self.state = SimpleNamespace(global_step=step, max_steps=100)
        self._score_affine = torch.tensor([1.0]), torch.tensor([0.5])
        self._tokenizer = SimpleNamespace(eos_token_id=9)


def oracle_of(trainer, asked_later=None):
    watched = Oracle.__new__(Oracle)
    watched.trainer, watched.asked_later = trainer, asked_later
    return watched


def notes_of(prompts, ids):
    return Notes(prompts, [""] * len(ids), ids, None)


def test_the_critic_is_to_foresee_the_scores_as_training_takes_them():
    notes = notes_of([], [[1, 9], [1, 2], [9]])
    raw = torch.tensor([2.0, 2.0, 6.0])
    # (score - 1) / 0.5, less 3 without an end, within 5 of 0.
    assert oracle_of(Trained())._trained_scores(raw, notes).tolist() == [2.0, 2.0, 10.0]
    trained = oracle_of(Trained(missing_eos_penalty=3.0, score_clip=5.0))._trained_scores(raw, notes)
    assert trained.tolist() == [2.0, -1.0, 5.0]


@pytest.mark.parametrize(("step", "asked"), [(0, [True, False]), (49, [True, False]), (50, [False, True])])
def test_of_a_curriculum_the_critic_is_measured_on_what_is_asked_now(step, asked):
    notes = notes_of(["praise soup staff :", "praise soup staff music :"], [[9], [9]])
    prompts = small.SmallWorld(None).prompts(recipes.RECIPES["curriculum"], 0, 64)
    assert oracle_of(Trained(step), prompts.asked_later)._asked_now(notes).tolist() == asked
    assert oracle_of(Trained(step))._asked_now(notes).tolist() == [True, True]


def test_a_bonus_moves_every_score_and_leaves_their_spread():
    trainer = Trained()
    before = oracle_of(trainer)._trained_scores(torch.tensor([1.0, 2.0]), notes_of([], [[9], [9]]))
    faults.FAULTS["offset"](trainer)
    after = oracle_of(trainer)._trained_scores(torch.tensor([1.0, 2.0]), notes_of([], [[9], [9]]))
    assert (after - before).tolist() == [faults.OFFSET] * 2
