"""M4: the value loss oscillates or explodes. X7: the critic explains nothing."""

import math
from dataclasses import dataclass

import numpy as np

from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .statistics import Floats, median, noise_sd, residuals, robust_sd

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
COLD = 0.05
"""Explained variance of a critic that still knows nothing; one that starts as the reward model has 0.1 and more."""


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
        constant (`float`): Squared error over the variance of the returns, by how much above that of a constant; healthy
            at most 1.2 over
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
    constant: float = 0.2
    rows: int = 8
    explosion: float = 10.0
    clipped: float = 0.3

    def swing(self, settings: RunSettings) -> float:
        """Deviation of the logarithm of the value loss from which it oscillates, for rollouts of that size."""
        return max(self.oscillation, self.noises * LOSS_NOISE / math.sqrt(sequences(settings)))

    def error(self, settings: RunSettings) -> float:
        """Squared error over the variance of the returns from which a critic is worse than a constant."""
        return 1 + self.constant + LEVEL_NOISE / sequences(settings)


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


def _nothing_to_explain(history: History) -> bool:
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
    if _nothing_to_explain(history):
        return None
    loss, variance = (_settled(history, name, before + rows + SETTLING) for name in ("value_loss", "return_var"))
    chosen = loss[0] < history.rows - before
    if not np.array_equal(loss[0], variance[0]) or chosen.sum() < rows:
        return None
    return median((2 * loss[2] / np.maximum(variance[2], 1e-12))[chosen][-rows:])


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
            Rule("constant", self._errs, ("value_loss", "return_var"), windows=0.5),
            Rule("explosion", self._explodes, ("value_loss",), windows=0.75),
            Rule("oscillation", self._oscillates, ("value_loss",)),
            Rule("clip", self._clips, ("value_clipfrac",), windows=0.5),
        )

    def _explained(self, history: History) -> float | None:
        return history.level("explained_var", history.windows.window // 2)

    def _errs(self, history: History) -> Verdict | None:
        error = error_of_constant(history, self.config.rows)
        limit = 1 + self.config.constant + LEVEL_NOISE / sequences(history.settings)
        if error is None or error <= limit:
            return None
        return Verdict(
            Severity.WARN,
            "the critic is worse than a constant",
            f"Its squared error is {error:.3g} times the variance of the returns: the mean of the returns would be a better "
            "value for everything. The advantages carry its error.",
            (history.evidence("value_loss", f"{error:.3g} of a constant's (alarm above {limit:.2f})", self.config.rows),),
            (
                "return_var",
                "explained_var",
            ),
        )

    def _oscillates(self, history: History) -> Verdict | None:
        window = history.windows.window
        x = _relative_loss(history, window)
        if x.size < 15 or _nothing_to_explain(history):
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
        if reference is None or loss is None or reference.median <= 0 or _nothing_to_explain(history):
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
        if _nothing_to_explain(history):
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
        slow_critic(history),
        _reuse(history),
        _tight_clip(history) if (settings.value_clip_range or math.inf) < math.inf else _no_clip(),
    ]


def learning_rates(history: History) -> tuple[float | None, float | None]:
    """Present learning rates of the critic and of the policy, else those of the settings."""
    own, policy = history.latest("lr_critic"), history.latest("lr")
    return own or history.settings.critic_learning_rate, policy or history.settings.learning_rate


def _fast_critic(history: History) -> Cause:
    own, policy = learning_rates(history)
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


def slow_critic(history: History) -> Cause:
    """The values lag behind the returns: wrong by more than a constant would be, and steadily so."""
    config, (own, policy) = CriticConfig(), learning_rates(history)
    error, limit = error_of_constant(history, config.rows), config.error(history.settings)
    losses = _relative_loss(history, history.windows.window // 2)
    # One that overshoots is wrong now this way and now that, and its loss swings.
    steady = losses.size >= 5 and noise_sd(losses) < config.swing(history.settings)
    known = error is not None and own is not None and policy is not None and policy > 0
    return cause(
        "critic-too-slow",
        "The returns moved, or the critic started far from them, and it does not follow fast enough.",
        error > limit and steady and own < FASTEST * policy / 2 if known else None,  # type: ignore[operator]
        f"Squared error {setting(error)} of a constant's (wrong above {limit:.2f}), "
        f"{'steady' if steady else 'swinging or unknown'}; critic's learning rate {setting(own)}, policy's {setting(policy)} "
        f"(room up to {FASTEST:g} times).",
        "Raise critic_learning_rate three to ten times; after a change of the reward, train the critic alone for some "
        "rollouts (critic_warmup_rollouts).",
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
