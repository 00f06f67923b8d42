"""M4: the critic does not settle."""

import numpy as np
from provoked import LATE, TIME, N, rng
from runs import check_of, healthy, modes, opening, watch

from rlhf_ext.diagnostics import Severity


def test_value_loss_that_oscillates():
    columns = healthy()
    columns["value_loss"] = columns["value_loss"] * np.exp(LATE * rng().normal(0, 1.2, N)) / 2
    columns["explained_var"] = columns["explained_var"] - 0.4
    _, events = watch(columns, critic_learning_rate=1e-3)
    assert opening(events, "M4").finding.severity == Severity.WARN
    columns["explained_var"] = columns["explained_var"] - 1.2 * LATE
    columns["lr_critic"] = columns["lr_critic"] * 100
    _, events = watch(columns)
    assert {"M4", "X7"} <= modes(events)
    assert "M4" in modes(events, Severity.CRITICAL)
    assert check_of(opening(events, "M4").finding, "critic-learning-rate") == "confirmed"


def test_value_loss_that_explodes_relative_to_the_returns():
    columns = healthy()
    columns["value_loss"] = columns["value_loss"] * np.exp(4 * LATE)
    variance = columns.pop("return_var")
    assert opening(watch(columns)[1], "M4").finding.title == "value loss explodes"
    columns["return_var"] = variance * np.exp(4 * LATE)
    assert "M4" not in modes(watch(columns)[1])


def test_critic_is_given_time_after_a_change_of_beta():
    columns = healthy()
    # Without it the loss is known by its own start alone, which is learned anew.
    del columns["return_var"], columns["explained_var"]
    columns["beta"] = np.where(TIME < 150, 0.3, 0.6)
    columns["value_loss"] = np.where(TIME >= 150, 20.0, 1.0) * columns["value_loss"]
    columns["value_loss"][150:155] *= 8
    assert "M4" not in modes(watch(columns)[1])
    columns["beta"][:] = 0.3
    assert "M4" in modes(watch(columns)[1])
