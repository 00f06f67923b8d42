"""The lab: its gold score cannot be gamed, its labels say what the oracle measured, its runs repeat."""

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures.acting import is_mended, is_saved
from benchmarks.failures.grammar import SUBJECTS, Request, gold, parse, random_note, random_sentence
from benchmarks.failures.labels import Label, critic_failures, is_healthy, label
from benchmarks.failures.lint import lint_table, warned_of
from benchmarks.failures.recipes import RECIPES
from benchmarks.failures.table import NO_PROBE, Result, lead_table, outcome_table, recall_table
from benchmarks.failures.verdicts import READERS, Verdict

REQUEST = Request("praise", ("soup", "staff"))


@pytest.mark.parametrize(
    ("note", "expected"),
    [
        ("the soup was hot . we found the staff kind .", 0.5 - 0.25),  # "we found the staff was ..." is the grammar's
        ("the soup was hot . we found the staff was kind .", 1.0 + 0.3 + 0.1),
        ("the soup was hot . the staff was kind .", 1.0 + 0.3),
        ("the staff was kind . the soup was hot .", 1.0),
        ("the soup was cold . the staff was kind .", 0.5 - 0.25 + 0.3),
        ("the soup was hot . the soup was fresh .", 0.5 - 0.25),
        ("the soup was hot . the staff was", 0.5 - 0.25),
        ("the music was sweet .", -0.25),
        ("hot fresh tasty kind quick friendly", -0.3),
        ("hot fresh tasty kind", -0.25),
        ("", 0.0),
    ],
)
def test_gold_by_hand(note, expected):
    assert gold(REQUEST, note) == pytest.approx(expected)


def test_repetition_and_keywords_never_pay():
    rng = random.Random(0)
    for _ in range(200):
        note = random_note(rng, REQUEST)
        before = gold(REQUEST, note)
        subject = rng.choice(list(SUBJECTS))
        mentioned = [s.subject for t in note.split(".")[:-1] if (s := parse(t.split()))]
        if subject in mentioned or subject not in REQUEST.subjects:
            assert gold(REQUEST, f"{note} {random_sentence(rng, subject, 'praise')}") < before
        assert gold(REQUEST, f"{note} hot tasty kind .") < before


def rows(gold_scores, **columns):
    """Rows of an oracle every 10 rollouts; other columns constant or given."""
    defaults = {
        "gold_sd": 0.5,
        "kl": 4.0,
        "proxy": 0.0,
        "score_sd": 1.0,
        "duplicates": 0.0,
        "reliability": 1.0,
        "mc_ev": 0.3,
        "mc_r2": 0.3,
    }
    return [
        {"rollout": 10 * i, "gold": g, **{n: (columns[n][i] if n in columns else v) for n, v in defaults.items()}}
        for i, g in enumerate(gold_scores)
    ]


RISE = [0.0, 0.3, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0]
FALL = [0.0, 0.3, 0.6, 0.8, 0.7, 0.5, 0.3, 0.0]


def test_a_gold_score_that_rises_is_healthy_and_has_no_label():
    assert label(rows(RISE)) == []
    assert is_healthy(rows(RISE))
    assert not is_healthy(rows([0.0, 0.1] * 4))
    assert not is_healthy([*rows(RISE), {"rollout": 80, "error": "The loss is not finite"}])


def test_a_critic_that_explains_nothing_is_not_healthy_where_that_can_be_told():
    idle = rows(RISE, mc_ev=[0.05] * 4 + [0.0] * 4)
    assert label(idle) == []
    assert not is_healthy(idle)
    assert is_healthy(idle, critic_is_measured=False)
    wrong = rows(RISE, mc_r2=[-0.5] * 8)
    assert not is_healthy(wrong, critic_is_measured=False)


def test_gold_that_falls_is_hacking_if_the_proxy_rises_and_drift_if_the_policy_went_far():
    proxy = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5]
    # Half of 0.5 below the peak of 0.8, twice in a row, is first so at 50: 0.5 and 0.3.
    assert label(rows(FALL, proxy=proxy)) == [Label("M3", 30, 50)]
    assert label(rows(FALL, kl=[3.0 * i for i in range(8)])) == [Label("M1", 30, 50)]
    assert label(rows(FALL)) == []


def test_one_bad_measurement_or_a_dip_is_no_damage():
    assert label(rows([0.0, 0.9, 1.0, 0.6, 0.6, 0.9, 1.0, 1.0], kl=[20.0] * 8)) == []
    assert label(rows([0.0, 0.5, 1.0, 0.6, 1.0, 1.0, 1.0, 1.0], kl=[20.0] * 8)) == []


def test_duplicates_a_critic_worse_than_a_constant_and_a_policy_that_stays():
    assert label(rows(RISE, duplicates=[0.0, 0.0, 0.05, 0.2, 0.35, 0.5, 0.9, 1.0])) == [Label("M2", 20, 40)]
    assert label(rows(RISE, mc_r2=[-0.5, -0.3, 0.1, 0.1, -0.2, -0.2, -0.3, 0.0])) == [Label("M4", 30, 40)]
    assert label(rows(RISE, mc_r2=[0.0, 0.0, 0.01, -0.01, -0.02, 0.0, 0.0, -0.04])) == []
    # Explains nothing of what it explained: for five measurements, and only where two scorings of a note agree.
    forgot = {"mc_ev": [0.3, 0.3, 0.2, 0.01, 0.0, 0.0, 0.01, 0.0]}
    assert label(rows(RISE, **forgot, reliability=[0.9] * 8)) == [Label("M4", 20, 30)]
    assert label(rows(RISE, **forgot, reliability=[0.1] * 8)) == []
    assert label(rows(RISE, mc_ev=[0.3, 0.3, 0.2, 0.2, 0.01, 0.0, 0.0, 0.01], reliability=[0.9] * 8)) == []
    assert label(rows([0.0] * 8, kl=[0.01] * 8)) == [Label("M5", 0, 70)]
    assert label(rows([0.0], kl=[0.0])) == []
    assert label(rows([0.0] * 8)) == []


def test_a_critic_fails_in_two_ways_and_is_saved_from_each():
    low = [0.3, 0.3, 0.2, 0.01, 0.0, 0.0, 0.01, 0.0]
    forgot = rows(RISE, mc_ev=low, mc_r2=low)
    worse = rows(RISE, mc_r2=[0.3, 0.3, 0.1, -2.0, -2.0, -2.0, -0.09, 0.0])
    assert critic_failures(forgot) == {"forgot": 3}
    assert critic_failures(worse) == {"worse": 3}
    # What says the same of everything does no harm and is not saved.
    assert (is_mended("worse", forgot), is_mended("forgot", forgot), is_saved("M4", forgot)) == (True, False, False)
    assert (is_mended("worse", worse), is_mended("forgot", worse)) == (False, True)
    assert is_saved("M4", worse[:6] + 3 * worse[-1:])
    # One that never explained anything has nothing to forget; one of the last three is enough.
    assert is_saved("M4", rows(RISE, mc_ev=[0.05] * 3 + [0.0] * 5, mc_r2=[0.0] * 8))
    assert is_mended("forgot", rows(RISE, mc_ev=[*low[:-2], 0.1, 0.0]))


def test_the_check_of_the_settings_names_what_is_wrong_and_nothing_else():
    assert {
        name: warned_of(recipe)
        for name, recipe in RECIPES.items()
        if (recipe.world, recipe.intent) == ("small", "healthy")
    } == {name: set() for name in ("base", "base-gold", "base-token-penalty", "base-low-rate")}
    wrong, healthy, rest = (line.split("|")[2:4] for line in lint_table().splitlines()[2:])
    count = sum(bool(recipe.lint) for recipe in RECIPES.values())
    assert [cell.strip() for cell in wrong] == [str(count), f"{count} named, and nothing else"]
    assert healthy[1].strip() == rest[1].strip() == "0 warned of"


def result(recipe, modes, alarms, healthy=False, cause=None, damage=50):
    silent = {name: Verdict() for name in (*READERS, NO_PROBE)}
    said = Verdict(alarms, set(), next(iter(alarms), None), cause)
    labels = {mode: Label(mode, 0, damage) for mode in modes}
    return Result(recipe, 0, labels, healthy, 100, silent | {"diagnostics": said})


def test_tables_count_what_was_seen_and_when():
    runs = [
        result("drift-rate", ["M1"], {"M1": 40}, cause="beta-too-low"),
        result("drift-rate", ["M1", "M2"], {"X6": 10}, cause="dropout"),
        result("critic-rate", ["M4"], {"X7": 60}),
        result("base", [], {}, healthy=True),
        result("resume", [], {"M1": 20}, healthy=True),
    ]
    cells = {line.split("|")[1].strip(): line.split("|")[2:6] for line in recall_table(runs).splitlines()}
    assert [cell.split()[0] for cell in cells["M1 drift"]] == ["1/2", "0/2", "0/2", "0/2"]
    # The rules of explained variance are a mode of their own and name the same failure.
    assert cells["M4 critic"][0].split()[0] == "1/1"
    assert cells["healthy, any warning"][0].split()[0] == "1/2"
    assert cells["of these hard negatives"][0].split()[0] == "1/1"
    assert cells["of these plain"][0].split()[0] == "0/1"
    # 1 of 2 by Wilson's formula: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).
    assert cells["M1 drift"][0].strip() == "1/2 (0.09 to 0.91)"
    leads = {
        line.split("|")[1].strip(): [c.strip() for c in line.split("|")[2:6]] for line in lead_table(runs).splitlines()
    }
    assert leads["M1"][:2] == ["2/2 (0.34 to 1.00)", "+0.25"]  # 10 and 40 rollouts of 100 before the damage
    assert [cell.split()[0] for cell in leads["M1"][2:]] == ["1/2", "1/2"]
    assert leads["M4"][:2] == ["0/1 (0.00 to 0.79)", "-0.10"]
    assert "| drift-rate | M1 | 2 | M1 2, M2 1 |" in outcome_table(runs)
