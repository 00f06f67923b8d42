"""Every stored run, read again: a verdict that moves shows here."""

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures.acting import pairs
from benchmarks.failures.figures import FIGURES, draw
from benchmarks.failures.labels import is_healthy, label
from benchmarks.failures.recipes import RECIPES, split_of
from benchmarks.failures.replay import VERDICTS, moved
from benchmarks.failures.stored import RUNS, read_rows

# Healthy runs that acting did not leave alone.
ACTED_UPON = {("rate-restart", 10)}


def test_verdicts_on_the_stored_runs_are_the_committed_ones():
    changes = moved(RUNS)
    assert not changes, (
        "The diagnostics say something else of these runs than they did. If that is better, accept it with "
        "`python -m benchmarks.failures accept` and say why in the commit:\n" + "\n".join(changes)
    )


def test_stored_runs_are_in_the_half_of_their_seed_and_of_recipes_that_exist():
    assert len(json.loads(VERDICTS.read_text(encoding="utf-8"))) >= len(RECIPES)
    for path in RUNS.glob("*/*/*/records.jsonl.gz"):
        split, recipe, seed = path.parts[-4:-1]
        assert recipe in RECIPES
        assert split in ("act", split_of(recipe, int(seed)))


@pytest.mark.parametrize("mode", FIGURES)
def test_plots_of_the_pages_are_those_of_the_stored_runs(mode):
    text = draw(mode)
    assert (Path(__file__).parents[2] / "docs" / "failures" / f"{mode}.svg").read_text(encoding="utf-8") == text
    assert len(text) < 60_000
    root = ElementTree.fromstring(text)
    words = "".join(root.itertext())
    # Both what the diagnostics said and what the oracle saw are marked.
    assert f"{mode} from rollout" in words
    assert ("damage at" in words) == bool(FIGURES[mode].outcomes) == mode.startswith("M")


def test_the_oracle_confirms_every_mode_in_two_ways_and_calls_the_base_healthy():
    confirmed = {}
    for path in RUNS.glob("tune/*/*/oracle.jsonl.gz"):
        rows = read_rows(path)
        for each in label(rows):
            confirmed.setdefault(each.mode, set()).add(path.parts[-3])
    assert {mode for mode, recipes in confirmed.items() if len(recipes) >= 2} >= {"M1", "M2", "M3", "M4", "M5"}
    assert is_healthy(read_rows(RUNS / "tune" / "base" / "0" / "oracle.jsonl.gz"))


def test_of_the_runs_that_act_the_other_half_is_stored_and_the_healthy_ones_are_left_alone():
    found = pairs()
    assert {mode for pair in found for mode in pair.modes} == {"M1", "M4"}
    healthy = [pair for pair in found if pair.healthy]
    assert len(healthy) > 3
    assert {(pair.recipe, pair.seed) for pair in healthy if pair.actions} == ACTED_UPON
    for pair in healthy:
        if pair.actions:
            continue
        # Watched and left alone, a run is the same run.
        assert [row.get("gold") for row in pair.after[:-1]] == [row.get("gold") for row in pair.before]
