"""M4: values worse than a constant, a value loss that oscillates or explodes. X7: the critic explains nothing."""

import math
from dataclasses import dataclass

import numpy as np

from .critic_causes import critic_causes
from .critic_signals import (
    LOSS_NOISE,
    SETTLING,
    CriticConfig,
    error_of_constant,
    nothing_to_explain,
    relative_loss,
    sequences,
    settled,
)
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .statistics import median, residuals, robust_sd


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


class Critic(Detector):
    """
    M4. A value loss above that of a constant, oscillation, spikes or growth of it, apart from warm-up and changes of beta.
    """

    mode = "M4"

    def __init__(self, settings: RunSettings, config: CriticConfig | None = None) -> None:
        self.config = config or CriticConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("constant", self._errs, ("value_loss", "return_var"), windows=0.75),
            Rule("explosion", self._explodes, ("value_loss",), windows=0.75),
            Rule("oscillation", self._oscillates, ("value_loss",)),
            Rule("clip", self._clips, ("value_clipfrac",), windows=0.5),
        )

    def _explained(self, history: History) -> float | None:
        return history.level("explained_var", history.windows.window // 2)

    def _errs(self, history: History) -> Verdict | None:
        error, limit = error_of_constant(history, self.config.rows), self.config.error(history.settings)
        if error is None or error <= limit:
            return None
        return Verdict(
            Severity.WARN,
            "the critic is worse than a constant",
            f"Its squared error is {error:.3g} times the variance of the returns: their mean would be a better value for "
            "everything. The advantages carry its error.",
            (
                history.evidence(
                    "value_loss", f"{error:.3g} of a constant's (alarm above {limit:.2f})", self.config.rows
                ),
            ),
            (
                "return_var",
                "explained_var",
            ),
        )

    def _oscillates(self, history: History) -> Verdict | None:
        window = history.windows.window
        x = relative_loss(history, window)
        if x.size < 15 or nothing_to_explain(history):
            return None
        noise = LOSS_NOISE / math.sqrt(sequences(history.settings))
        limit = self.config.swing(history.settings)
        spike = max(math.log(self.config.spike), self.config.noises_of_spike * noise)
        apart = residuals(x)
        swing, spikes = robust_sd(apart[-(x.size // 2) :]), int((apart > spike).sum())
        if swing < limit and spikes < self.config.spikes:
            return None
        explained = self._explained(history)
        dead = swing >= max(limit, self.config.strong_oscillation) and explained is not None and explained <= 0
        statistic = (
            f"log residual sd {swing:.2f} (alarm from {limit:.2g}), {spikes} spikes above {math.exp(spike):.2g} times the "
            f"local median (alarm from {self.config.spikes})"
        )
        return Verdict(
            Severity.CRITICAL if dead else Severity.INFO if self._is_harmless(history) else Severity.WARN,
            "value loss oscillates",
            f"The value loss swings by a factor of {math.exp(swing):.2g} from rollout to rollout (healthy: 1.2).",
            (history.evidence("value_loss", statistic),),
            (
                "explained_var",
                "score_mean",
            ),
        )

    def _is_harmless(self, history: History) -> bool:
        values = history.values("explained_var", history.windows.window)
        return values.size > 0 and float(np.quantile(values, 0.25)) >= self.config.harmless

    def _explodes(self, history: History) -> Verdict | None:
        reference, loss = history.reference("value_loss"), history.level("value_loss")
        spread, start = history.level("return_var"), history.reference("return_var")
        if reference is None or loss is None or reference.median <= 0 or nothing_to_explain(history):
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
        if nothing_to_explain(history):
            return None
        last = settled(history, "explained_var", self.config.rows + SETTLING)[2][-self.config.rows :]
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
