"""A run of the lab, end to end, with models that were hardly trained."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures import base, produce, recipes, small, world
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
    assert records[0].values["kl_ref_seq"] == 0.0
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
