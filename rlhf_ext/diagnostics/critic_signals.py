"""What is read of a critic: how far its values are off, how its loss swings, and how much of that is chance."""

import math
from dataclasses import dataclass

import numpy as np

from .history import History
from .record import RunSettings
from .statistics import Floats, median

SETTLING = 5
"""Rows after a change of beta, a resume or a restart of the learning rate in which the critic meets other returns."""
NO_SPREAD = 1e-6
"""Spread of the scores that is rounding: there is nothing for a critic to explain, and X14 says so."""
LOSS_NOISE = 3.0
"""
Deviation of the logarithm of a value loss that is a mean over one sequence: a mean over B has `1 / sqrt(B)` of it. That is
`sqrt(kurtosis - 1)` of the errors, whose kurtosis is 3 for Gaussian ones and about 10 for those of a critic that is right
but for few sequences. Healthy runs of 512 sequences swing by 0.13, of 64 by 0.1 to 0.5, of 16 by 0.4 to 0.7.
"""
LEVEL_NOISE = 4.0
"""
Squared error of a rollout's mean around the right level, in variances of the returns, times the sequences: chi^2 of one
degree of freedom, whose 95 % quantile is 3.84.
"""
FASTEST = 10.0
"""Critic's learning rate over the policy's; recipes use 1 to 10."""
ROLLOUT_SIZE = 64
"""Sequences that are assumed where the settings do not say."""


def sequences(settings: RunSettings) -> int:
    """Sequences that a rollout's metrics are means of."""
    return settings.rollout_size or ROLLOUT_SIZE


@dataclass(frozen=True)
class CriticConfig:
    """
    Thresholds.

    Args:
        oscillation (`float`): Robust sd of log(value loss / variance of the returns) around its running median; healthy
            public runs have 0.11 to 0.16, at most 0.31. At least
        noises (`float`): so many times the sampling noise of a rollout, `LOSS_NOISE / sqrt(rollout_size)`.
        strong_oscillation (`float`): CRITICAL from here, if the critic explains nothing too.
        spike (`float`): Value loss over the local median; healthy at most 2.3. Beyond
        noises_of_spike (`float`): so many times the same noise of its logarithm.
        spikes (`int`): That many in a window.
        harmless (`float`): INFO where three of four rollouts have at least this explained variance: the loss of a critic
            that explains nearly everything is what few completions leave, and that swings.
        constant (`float`): Squared error over the variance of the returns, by how much above that of a constant (healthy
            runs 0.08 at most where three tests in a row hold, failing ones from 0.33 on), over
        rows (`int`): rollouts, the median.
        explosion (`float`): Value loss (relative to the returns' variance) over that of the reference.
        clipped (`float`): Share of clipped values from which the clip, not the loss, decides.
    """

    oscillation: float = 0.5
    noises: float = 1.5
    strong_oscillation: float = 0.8
    spike: float = 3.0
    noises_of_spike: float = 3.0
    spikes: int = 4
    harmless: float = 0.3
    constant: float = 0.15
    rows: int = 8
    explosion: float = 10.0
    clipped: float = 0.3

    def swing(self, settings: RunSettings) -> float:
        """Deviation of the logarithm of the value loss from which it oscillates, for rollouts of that size."""
        return max(self.oscillation, self.noises * LOSS_NOISE / math.sqrt(sequences(settings)))

    def error(self, settings: RunSettings) -> float:
        """Squared error over the variance of the returns from which a critic is worse than a constant."""
        return 1 + self.constant + LEVEL_NOISE / sequences(settings)


def settled(history: History, name: str, rows: int) -> Floats:
    """Rows, steps and values of the last rows without those in which the critic settles, of shape `(3, n)`."""
    logged, disturbed = history.logged(name, rows), history.critic_disturbed
    if logged.size and logged[0, 0] >= disturbed + SETTLING:
        return logged
    return logged[:, (logged[0] < disturbed) | (logged[0] >= disturbed + SETTLING)]


def relative_loss(history: History, rows: int) -> Floats:
    """log(value loss / variance of the returns), or of the loss alone where the variance is not logged."""
    loss, variance = settled(history, "value_loss", rows), settled(history, "return_var", rows)
    values = loss[2]
    if np.array_equal(variance[0], loss[0]):
        values = values / np.maximum(variance[2], 1e-12)
    return np.log(np.maximum(values, 1e-12))


def nothing_to_explain(history: History) -> bool:
    """Whether the scores have no spread, for which no critic is to blame."""
    spread = history.level("score_std")
    return spread is not None and spread <= NO_SPREAD


def error_of_constant(history: History, rows: int, before: int = 0) -> float | None:
    """
    Median of the squared error over the variance of the returns, `2 value_loss / return_var`, since half the square is
    what every PPO here calls value loss; 1 is a critic that says the mean of the returns for everything.

    Args:
        history ([`History`]): The run.
        rows (`int`): Rollouts, apart from those in which the critic settles.
        before (`int`, *optional*, defaults to `0`): So many rollouts ago.

    Returns:
        `float`: `None` for fewer than `rows` rollouts, or scores without spread.
    """
    if nothing_to_explain(history):
        return None
    loss, variance = (settled(history, name, before + rows + SETTLING) for name in ("value_loss", "return_var"))
    chosen = loss[0] < history.rows - before
    if not np.array_equal(loss[0], variance[0]) or chosen.sum() < rows:
        return None
    return median((2 * loss[2] / np.maximum(variance[2], 1e-12))[chosen][-rows:])
