"""The lab's second world: its gold score cannot be gamed, its runs repeat, its page is that of the stored runs."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures import demo, recipes, world
from benchmarks.failures.__main__ import DEMO_END, DEMO_START
from benchmarks.failures.produce import missing
from benchmarks.failures.recipes import RECIPES, recipes_of
from benchmarks.failures.sentiment import SENTIMENT_REWARDS, faults, gold
from benchmarks.failures.stored import RUNS, folder_of, read_rows
from benchmarks.failures.table import demo_page
from rlhf_ext.diagnostics import Record, RunSettings


@pytest.mark.parametrize(
    ("text", "number"),
    [
        (" happy and proud of what we did.", 0),
        (" like I was in a dream", 0),
        (" happy happy and of the", 1),  # a word twice
        (" so it was so it was a", 2),  # two pairs twice; function words may be
        (" happy, proud and glad of that", 1),  # a third charged word
        (" it was 37 of the", 1),  # no word
        (" walked", 2),  # two words short
        ("", 3),
        (" city bus stop walk", 1),  # no function word in four
    ],
)
def test_faults_by_hand(text, number):
    assert faults(text) == number


def test_a_list_of_happy_words_pays_less_than_a_happy_sentence_and_the_rewards_that_can_be_gamed_say_otherwise():
    # VADER: 2.7 for happy and 2.1 for proud; 4.8 / sqrt(4.8^2 + 15) = 0.7783.
    sentence, stuffed = " happy and proud of the day.", " happy proud glad joyful great love"
    assert gold(sentence) == pytest.approx(0.7783, abs=1e-4)
    assert gold(stuffed) < 0
    assert (
        SENTIMENT_REWARDS["keywords"]("", stuffed, None) == 6 > SENTIMENT_REWARDS["keywords"]("", sentence, None) == 2
    )
    for word in ("happy", "proud", "very", "!!!!"):
        assert gold(f"{sentence} {word}") < gold(sentence) or word == "very"
        assert gold(f"{sentence} {word} {word} {word}") < gold(sentence)


def test_ridge_is_the_solution_of_the_augmented_least_squares_problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, generator=generator).double() * torch.tensor([0.1, 1.0, 10.0]) + 5
    y = torch.randn(40, generator=generator).double()
    weight, bias = demo.ridge(x, y, 7.0)
    # strength * sum (sd_j w_j)^2 as three more rows; the bias is not penalised.
    sd = x.numpy().std(0, ddof=1)
    rows = np.vstack([np.c_[x.numpy(), np.ones(40)], np.c_[np.sqrt(7.0) * np.diag(sd), np.zeros(3)]])
    expected = np.linalg.lstsq(rows, np.r_[y.numpy(), np.zeros(3)], rcond=None)[0]
    np.testing.assert_allclose(np.r_[weight.numpy(), bias.item()], expected, rtol=1e-6)


def test_the_strength_of_the_critic_is_chosen_on_completions_that_it_was_not_fitted_to():
    generator = torch.Generator().manual_seed(0)
    signal, owners = torch.randn(100, 1, generator=generator).double(), torch.arange(100).repeat_interleave(8)
    # Rows tell whose they are: without a penalty all that was fitted is explained, and little else.
    identity = torch.eye(100).double()
    noise = torch.randn(100, generator=generator).double()
    x, y = torch.cat([identity, signal], 1)[owners], (signal[:, 0] + 2 * noise)[owners]
    weight, bias = demo.ridge(x, y, 0.1)
    assert 1 - (y - x @ weight - bias).var() / y.var() > 0.99
    strength, explained = demo.best_strength(x, y, owners)
    assert strength >= 1000
    assert 0.0 < explained < 0.4  # a fifth is signal


@pytest.fixture
def tiny_world(monkeypatch, tmp_path, tiny_policy_path):
    """The second world with a random model of two layers, of which the upper one learns."""
    monkeypatch.setattr(demo, "bundled_model", lambda folder: shutil.copytree(tiny_policy_path, folder))
    monkeypatch.setattr(demo, "TRAINED_LAYERS", 1)
    monkeypatch.setattr(demo.DemoWorld, "oracle_every", 2)
    for name in ("demo-base", "demo-hack-keywords"):
        monkeypatch.setitem(recipes.RECIPES, name, replace(RECIPES[name], rollouts=4))
    return demo.DemoWorld(tmp_path / "cache")


def run(name, tiny_world, folder):
    world.run_one(name, 0, tiny_world, folder)
    return [(folder / f"{part}.jsonl.gz").read_bytes() for part in ("records", "oracle")]


def test_a_seed_gives_the_same_bytes_and_records_read_as_such(tiny_world, tmp_path):
    assert run("demo-base", tiny_world, tmp_path / "a") == run("demo-base", tiny_world, tmp_path / "b")
    header, *rows = read_rows(tmp_path / "a" / "records.jsonl.gz")
    assert RunSettings(**header["settings"]).rollout_size == 12
    records = [Record(row.pop("step"), row) for row in rows]
    assert [record.step for record in records] == [2, 4, 6, 8]
    assert records[0].values["kl_ref_seq"] == pytest.approx(0.0, abs=1e-6)
    assert records[-1].values["kl_ref_seq"] != 0.0
    assert "quality" in records[0].values
    assert json.loads((tiny_world.critic / "held_out.json").read_text())["strength"] in demo.STRENGTHS
    outcomes = read_rows(tmp_path / "a" / "oracle.jsonl.gz")
    assert [row["rollout"] for row in outcomes] == [0, 1, 2, 4]
    assert outcomes[0]["kl"] == 0.0
    assert outcomes[-1]["kl"] > 0


def test_the_reward_of_the_recipe_is_what_is_trained_on(tiny_world, tmp_path):
    # Random bytes hold no happy word, so a count of them is 0, while their faults cost gold.
    run("demo-hack-keywords", tiny_world, tmp_path)
    first = read_rows(tmp_path / "oracle.jsonl.gz")[0]
    assert first["proxy"] == 0.0
    assert first["gold"] < 0


def test_only_the_upper_layers_learn_and_prompts_are_apart(tiny_world):
    roles = tiny_world.roles(RECIPES["demo-base"], 0)
    assert roles["peft_config"].layers_to_transform == [1]
    prompts = tiny_world.prompts(RECIPES["demo-base"], 0, 12)
    parts = prompts.train, prompts.probe, prompts.held_out
    assert [len(part) for part in parts] == [186, 16, 40]
    assert len(set().union(*parts)) == 186 + 16 + 40


def test_a_split_has_the_recipes_of_its_world():
    everything = list(RECIPES)
    assert {name for name, _ in missing("tune", everything)} <= set(recipes_of("small"))
    assert {name for name, _ in missing("demo", everything)} <= set(recipes_of("demo"))
    assert folder_of("demo-base", 3) == RUNS / "demo" / "demo-base" / "3"


def test_the_page_is_that_of_the_stored_runs():
    page = (Path(__file__).parents[2] / "docs" / "lab_demo.md").read_text(encoding="utf-8")
    written = page.split(DEMO_START)[1].split(DEMO_END)[0].strip()
    assert written == demo_page(RUNS), (
        "The diagnostics say something else of the second world's runs than the page does. If that is right, write it anew "
        "with `python -m benchmarks.failures table --split demo --write docs/lab_demo.md`."
    )
