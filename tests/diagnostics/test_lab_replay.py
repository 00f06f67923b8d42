"""Every stored run of the tune half, read again: a verdict that moves shows here."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.failures.replay import VERDICTS, moved, replay
from benchmarks.failures.stored import RUNS


def test_verdicts_on_the_stored_runs_are_the_committed_ones():
    changes = moved(RUNS / "tune")
    assert not changes, (
        "The diagnostics say something else of these runs than they did. If that is better, accept it with "
        "`python -m benchmarks.failures accept` and say why in the commit:\n" + "\n".join(changes)
    )


def test_the_committed_verdicts_are_of_runs_that_exist():
    assert VERDICTS.is_file()
    assert len(replay(RUNS / "tune")) > 20
