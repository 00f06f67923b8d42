"""M4: the value loss oscillates or explodes. X7: the critic explains nothing."""

import math
from dataclasses import dataclass

import numpy as np

from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .statistics import Floats, median, residuals, robust_sd

SETTLING = 5
"""Rows after a change of beta, a resume or a restart of the learning rate in which the critic meets other returns."""


NO_SPREAD = 1e-6
"""Spread of the scores that is rounding: there is nothing for a critic to explain, and X14 says so."""
COLD = 0.05
"""Explained variance of a critic that still knows nothing; one that starts as the reward model has 0.1 and more."""


@dataclass(frozen=True)
class CriticConfig:
    """
    Thresholds.

    Args:
        oscillation (`float`): Robust sd of log(value loss / variance of the returns) around its running median; healthy
            public runs have 0.11 to 0.16, at most 0.31.
        strong_oscillation (`float`): CRITICAL from here, if the critic explains nothing too.
        spike (`float`): Value loss over the local median; healthy at most 2.3.
        spikes (`int`): That many in a window.
        explosion (`float`): Value loss (relative to the returns' variance) over that of the reference.
        clipped (`float`): Share of clipped values from which the clip, not the loss, decides.
    """

    oscillation: float = 0.5
    strong_oscillation: float = 0.8
    spike: float = 3.0
    spikes: int = 4
    explosion: float = 10.0
    clipped: float = 0.3


@dataclass(frozen=True)
class ExplainedConfig:
    """
    Thresholds.

    Args:
        rows (`int`): Rollouts in a row with an explained variance of at most
        nothing (`float`): this. A critic that says one number for everything explains 0 give or take 0.02, on either side;
            that of a healthy run passes it every few rollouts.
        share (`float`): Share of rollouts at 0 or less in two windows that is CRITICAL, where
        worse (`float`): the median is below this too: a critic at 0 removes no variance, one far below adds some.
        drop (`float`): Fall below the reference worth knowing.
    """

    rows: int = 10
    nothing: float = 0.02
    share: float = 0.8
    worse: float = -0.1
    drop: float = 0.3


def _settled(history: History, name: str, rows: int) -> Floats:
    """Rows, steps and values of the last rows without those in which the critic settles, of shape `(3, n)`."""
    logged, disturbed = history.logged(name, rows), history.critic_disturbed
    if logged.size and logged[0, 0] >= disturbed + SETTLING:
        return logged
    return logged[:, (logged[0] < disturbed) | (logged[0] >= disturbed + SETTLING)]


def _relative_loss(history: History, rows: int) -> Floats:
    """log(value loss / variance of the returns), or of the loss alone where the variance is not logged."""
    loss, variance = _settled(history, "value_loss", rows), _settled(history, "return_var", rows)
    values = loss[2]
    if np.array_equal(variance[0], loss[0]):
        values = values / np.maximum(variance[2], 1e-12)
    return np.log(np.maximum(values, 1e-12))


class Critic(Detector):
    """M4. Oscillation, spikes or growth of the value loss, apart from warm-up and changes of beta."""

    mode = "M4"

    def __init__(self, settings: RunSettings, config: CriticConfig | None = None) -> None:
        self.config = config or CriticConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("explosion", self._explodes, ("value_loss",), windows=0.75),
            Rule("oscillation", self._oscillates, ("value_loss",)),
            Rule("clip", self._clips, ("value_clipfrac",), windows=0.5),
        )

    def _explained(self, history: History) -> float | None:
        return history.level("explained_var", history.windows.window // 2)

    def _oscillates(self, history: History) -> Verdict | None:
        window = history.windows.window
        x = _relative_loss(history, window)
        if x.size < 15:
            return None
        apart = residuals(x)
        swing, spikes = robust_sd(apart[-(x.size // 2) :]), int((apart > math.log(self.config.spike)).sum())
        if swing < self.config.oscillation and spikes < self.config.spikes:
            return None
        explained = self._explained(history)
        dead = swing >= self.config.strong_oscillation and explained is not None and explained <= 0
        statistic = (
            f"log residual sd {swing:.2f} (alarm from {self.config.oscillation:g}), {spikes} spikes above "
            f"{self.config.spike:g} times the local median (alarm from {self.config.spikes})"
        )
        return Verdict(
            Severity.CRITICAL if dead else Severity.WARN,
            "value loss oscillates",
            f"The value loss swings by a factor of {math.exp(swing):.2g} from rollout to rollout (healthy: 1.2).",
            (history.evidence("value_loss", statistic),),
            (
                "explained_var",
                "score_mean",
            ),
        )

    def _explodes(self, history: History) -> Verdict | None:
        reference, loss = history.reference("value_loss"), history.level("value_loss")
        spread, start = history.level("return_var"), history.reference("return_var")
        if reference is None or loss is None or reference.median <= 0:
            return None
        growth = loss / reference.median
        if spread is not None and start is not None and start.median > 0 and spread > 0:
            growth /= spread / start.median
        if growth < self.config.explosion:
            return None
        explained = self._explained(history)
        statistic = f"{growth:.3g} times the reference, relative to the returns (alarm from {self.config.explosion:g})"
        return Verdict(
            Severity.CRITICAL if explained is not None and explained <= 0 else Severity.WARN,
            "value loss explodes",
            f"The value loss rose from {reference.median:.3g} to {loss:.3g}.",
            (history.evidence("value_loss", statistic),),
            (
                "explained_var",
                "score_mean",
            ),
        )

    def _clips(self, history: History) -> Verdict | None:
        share = history.level("value_clipfrac")
        if share is None or share <= self.config.clipped:
            return None
        statistic = f"value_clipfrac = {share:.2f} (alarm above {self.config.clipped:g})"
        return Verdict(
            Severity.INFO,
            "value clip binds",
            f"{share:.0%} of the value losses are clipped: the critic may not move as far as it should.",
            (history.evidence("value_clipfrac", statistic),),
        )

    def causes(self, history: History) -> list[Cause]:
        return critic_causes(history)


class ExplainedVariance(Detector):
    """X7. Values that explain nothing of the returns, or less than they did."""

    mode = "X7"

    def __init__(self, settings: RunSettings, config: ExplainedConfig | None = None) -> None:
        self.config = config or ExplainedConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("useless", self._useless, ("explained_var",), windows=0.5),
            Rule("drop", self._dropped, ("explained_var",), windows=0.75),
        )

    def _useless(self, history: History) -> Verdict | None:
        spread = history.level("score_std")
        if spread is not None and spread <= NO_SPREAD:
            return None
        last = _settled(history, "explained_var", self.config.rows + SETTLING)[2][-self.config.rows :]
        if last.size < self.config.rows or last.max() > self.config.nothing:
            return None
        long = history.values("explained_var", min(2 * history.windows.window, history.settled))
        enough = history.settled >= 2 * history.windows.window
        worse = enough and (long <= 0).mean() > self.config.share and median(long) <= self.config.worse
        return Verdict(
            Severity.CRITICAL if worse else Severity.WARN,
            "the critic explains nothing",
            f"The explained variance has been {self.config.nothing:g} or less for {self.config.rows} rollouts; its median "
            f"is {median(last):.2f}. The advantages are as noisy as without a critic, or noisier.",
            (history.evidence("explained_var", f"largest of {self.config.rows}: {last.max():.2f}", self.config.rows),),
            (
                "value_loss",
                "score_mean",
            ),
        )

    def _dropped(self, history: History) -> Verdict | None:
        reference, level = history.reference("explained_var"), history.level("explained_var")
        if reference is None or level is None or level > reference.median - self.config.drop:
            return None
        return Verdict(
            Severity.INFO,
            "the critic explains less than it did",
            f"The explained variance fell from {reference.median:.2f} to {level:.2f}.",
            (history.evidence("explained_var", f"fell by {reference.median - level:.2f}"),),
        )

    def causes(self, history: History) -> list[Cause]:
        return critic_causes(history)


def critic_causes(history: History) -> list[Cause]:
    """Causes of a bad critic in the order in which to try their remedies."""
    settings = history.settings
    return [
        _fast_critic(history),
        _scale(history),
        _unclipped_gradient(history),
        _cold_critic(history),
        _reuse(history),
        _tight_clip(history) if (settings.value_clip_range or math.inf) < math.inf else _no_clip(),
    ]


def _fast_critic(history: History) -> Cause:
    own, policy = history.latest("lr_critic"), history.latest("lr")
    own, policy = own or history.settings.critic_learning_rate, policy or history.settings.learning_rate
    clipped = history.ratio("grad_norm_critic")
    known = own is not None and policy is not None and policy > 0
    return cause(
        "critic-learning-rate",
        "The critic's learning rate is too high.",
        own / policy >= 30 or (clipped is not None and clipped > 10) if known else None,  # type: ignore[operator]
        f"Critic {setting(own)}, policy {setting(policy)} (suspicious from 30 times); critic's gradient over that of the "
        f"start {setting(clipped)}.",
        "Set critic_learning_rate to 0.3 of what it is.",
    )


def _scale(history: History) -> Cause:
    spread, growth = history.level("return_var"), history.ratio("score_std")
    known = [spread > 100.0] if spread is not None else []
    known += [growth > 2.0] if growth is not None else []
    return cause(
        "reward-scale",
        "The returns are large or grew: one step of the critic is then large too.",
        any(known) if known else None,
        f"Variance of the returns {setting(spread)} (large above 100); score_std over that of the start {setting(growth)}.",
        "Set normalize_scores, and score_clip to 5 or 10.",
    )


def _unclipped_gradient(history: History) -> Cause:
    limit, name = history.settings.max_grad_norm, history.first("grad_norm_critic|grad_norm")
    norm = history.level(name)
    return cause(
        "gradient-not-clipped",
        "Single batches move the critic far.",
        None if limit is None else not 0 < limit <= 10,
        f"max_grad_norm {setting(limit)}; {name} {setting(norm)}.",
        "Set max_grad_norm=1.0, and look whether the trainer applies it (PPO in TRL up to 1.12 did not).",
    )


def _cold_critic(history: History) -> Cause:
    warmup, start = history.settings.critic_warmup_rollouts, history.reference("explained_var")
    # A critic that explained something has been warm.
    first = start.median if start is not None else None
    never = None if first is None else first <= COLD
    return cause(
        "critic-not-warmed-up",
        "The critic starts from random values, and the policy follows it from the first rollout.",
        False if warmup or never is False else None if warmup is None else never,
        f"critic_warmup_rollouts {setting(warmup)}; explained variance at first {setting(first)}.",
        "Set critic_warmup_rollouts=10, or start the critic as the reward model.",
    )


def _reuse(history: History) -> Cause:
    epochs = history.settings.num_epochs
    return cause(
        "too-many-epochs",
        "The critic fits each rollout too closely.",
        None if epochs is None else epochs > 4,
        f"num_iterations {setting(epochs)}.",
        "Set num_iterations to 4 or fewer; with a value head on the policy's trunk lower vf_coef.",
    )


def _tight_clip(history: History) -> Cause:
    share = history.level("value_clipfrac")
    return cause(
        "value-clip-too-tight",
        "The value clip stops the critic from following the returns.",
        None if share is None else share > 0.3,
        f"value_clip_range {setting(history.settings.value_clip_range)}, value_clipfrac {setting(share)}.",
        "Raise value_clip_range, or set it to none.",
    )


def _no_clip() -> Cause:
    return cause(
        "value-clip-off",
        "Nothing limits how far a value moves within a rollout.",
        None,
        "Value clipping helps some runs and harms others (37 details of PPO cites both): try it last.",
        "Set value_clip_range=0.5.",
    )
