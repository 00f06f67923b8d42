"""M5: nothing moves, and the causes of it told apart."""

import numpy as np
import pytest
from provoked import TIME, N, rng, set_kl
from runs import healthy, modes, noise, watch

from rlhf_ext.diagnostics import Severity


def still(**changes):
    """A policy that stays where it is, under a score that does not answer."""
    columns = healthy()
    set_kl(columns, np.full(N, 0.02))
    columns["kl_se"] = np.full(N, 0.01)
    columns["kl_ref_seq"] = 0.02 + noise(rng(), N, 0.01)
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / 40
    columns["kl_ref_k3"] = np.full(N, 0.03)
    columns["score_mean"] = noise(rng(), N, 0.12)
    columns["score_max"] = np.full(N, 2.5)
    columns["quality"] = np.where(TIME % 5 == 0, noise(rng(), N, 0.05), np.nan)
    return columns | {name: np.broadcast_to(np.asarray(value, dtype=float), N) for name, value in changes.items()}


CAUSES = {
    "beta-too-high": ({"beta": 30.0, "kl_update": 5e-4}, {}),
    "learning-rate-too-low": ({"lr": 1e-8, "kl_update": 1e-6}, {}),
    "no-gradient, and a critic that learns": ({"kl_update": 0.0, "kl_ref_seq": 0.0}, {}),
    "no-gradient": ({"grad_norm": 0.0, "kl_update": 0.0, "kl_ref_seq": 0.0}, {}),
    "constant-score": ({"score_std": 0.0, "kl_update": 0.0, "score_mean": 1.0}, {}),
    "reference-is-the-policy": ({"kl_ref_seq": 0.0, "kl_ref_tok": 0.0, "kl_update": 5e-4}, {}),
    "reward-clipped-away": (
        {"score_mean": 1.96, "score_std": 0.1, "beta": 0.01, "kl_update": 5e-4},
        {"score_clip": 2.0},
    ),
    "controller-at-upper-bound": ({"beta": np.minimum(0.2 + 0.05 * TIME, 3.0), "kl_update": 5e-4}, {}),
    "score-at-ceiling": (
        {"score_max": 1.0, "score_mean": 0.99, "score_std": 0.05, "beta": 0.01, "kl_update": 5e-4},
        {},
    ),
    "updates-cancel": ({"kl_update": 0.005}, {}),
}


@pytest.mark.parametrize("name", CAUSES)
def test_no_movement_and_its_cause(name):
    columns, changes = CAUSES[name]
    _, events = watch(still(**columns), **changes)
    kinds = [(e.kind, e.finding.severity) for e in events if e.finding.mode == "M5"]
    assert kinds[:2] == [("opened", Severity.INFO), ("escalated", Severity.WARN)]
    finding = [e for e in events if e.finding.mode == "M5"][-1].finding
    confirmed = [c.name for c in finding.causes if c.check == "confirmed"]
    # A controller at its upper bound holds a beta that is too high: both are true.
    assert confirmed == [name.split(",")[0]] + ["beta-too-high"] * (name == "controller-at-upper-bound")


def test_a_small_distance_that_pays_is_movement():
    columns = still(kl_update=5e-4)
    columns["score_mean"] = 0.01 * TIME + noise(rng(), N, 0.12)
    assert "M5" not in modes(watch(columns)[1], Severity.INFO)
