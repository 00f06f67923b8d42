"""What the tests of the main modes change in a healthy run, and when."""

import numpy as np
from runs import healthy, noise

N = 240
TIME = np.arange(N)
LATE = np.clip((TIME - 110) / 60, 0, 1)
"""0 up to rollout 110, then a rise to 1 within 60."""


def rng():
    return np.random.default_rng(7)


def without_target(columns):
    """A run of fixed beta and no target."""
    del columns["kl_target"]
    return columns, {"kl_target": None, "kl_unit": None, "kl_controller": "fixed"}


def set_kl(columns, kl):
    columns["kl_ref_seq"] = kl + noise(rng(), N, 1.0) * columns["kl_se"]
    columns["kl_ref_tok"] = columns["kl_ref_seq"] / columns["len_mean"]
    columns["kl_ref_k3"] = columns["kl_ref_seq"] * 1.1 + 0.05


def hacked():
    columns = healthy()
    columns["score_mean"] = columns["score_mean"] + 1.0 * LATE
    columns["quality"] = columns["quality"] - 0.8 * LATE
    return columns
