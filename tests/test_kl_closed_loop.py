"""log_pi in closed loop on every plant of the published grid."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import kl_plants

PLANTS = list(kl_plants.grid())


@pytest.mark.parametrize("start", [1.0, 1 / 3, 3.0], ids=["auto", "low", "high"])
@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_log_pi_ends_within_a_quarter_of_the_target(plant, start):
    _, end = kl_plants.outcome(plant, "log_pi", start)
    assert 0.75 <= end <= 1.25


@pytest.mark.parametrize("start", [1.0, 1 / 3], ids=["auto", "low"])
@pytest.mark.parametrize("plant", PLANTS, ids=str)
def test_log_pi_overshoots_no_more_than_ziegler(plant, start):
    peak, _ = kl_plants.outcome(plant, "log_pi", start)
    ziegler_peak, ziegler_end = kl_plants.outcome(plant, "ziegler", start)
    # Where beta starts exactly right, Ziegler's rule, nearly inert, is hard to beat: a fifth is let pass there. And it does
    # not overshoot a target that it never reaches.
    assert peak <= max(ziegler_peak, 1.2) or ziegler_end < 0.75
