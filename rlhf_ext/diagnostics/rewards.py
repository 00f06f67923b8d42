"""X12 to X14: the signal itself. Its scale changes, it saturates, or there is none."""

from dataclasses import dataclass

from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import score_improves
from .statistics import median

OUTLIER = 6.0
"""Standard deviations of the largest score of a rollout above the mean; the largest of a thousand Gaussian ones is 3.2."""


@dataclass(frozen=True)
class ScaleConfig:
    """
    Thresholds.

    Args:
        factor (`float`): Spread of the scores over that of the reference, either way, in three rollouts in a row.
        step (`float`): The same over that of half a window ago: a spread that changes slowly is learning (scores of 0 or 1
            spread four times as much at 0.5 as at 0.01).
        shift (`float`): Step of the mean from five rollouts to the next five, in standard deviations of a rollout, worth
            knowing where it is a standard deviation of the scores too.
    """

    factor: float = 3.0
    step: float = 2.0
    shift: float = 5.0


class RewardScale(Detector):
    """X12. The scale of the scores changes at a stroke."""

    mode = "X12"

    def __init__(self, settings: RunSettings, config: ScaleConfig | None = None) -> None:
        self.config = config or ScaleConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("spread", self._spread, ("score_std",), windows=0.75, on="score_std"),
            Rule("shift", self._shift, ("score_mean", "score_std"), windows=0.75, patience=1),
        )

    def _spread(self, history: History) -> Verdict | None:
        window, start = history.windows.window, history.reference("score_std")
        values = history.values("score_std", window)
        if start is None or values.size < window or start.median <= 0:
            return None
        before, after = median(values[: window // 2]), float(values[-1])
        ratio = after / start.median
        if ratio <= 0 or 1 / self.config.factor <= ratio <= self.config.factor:
            return None
        if before <= 0 or 1 / self.config.step <= after / before <= self.config.step:
            return None
        return Verdict(
            Severity.WARN,
            "reward scale changed",
            f"The spread of the scores went from {before:.3g} to {after:.3g} within {window} rollouts.",
            (
                history.evidence(
                    "score_std", f"{ratio:.2f} of the reference (alarm from {self.config.factor:g}, 1/...)"
                ),
            ),
            (
                "score_mean",
                "kl_ref_seq",
                "value_loss",
            ),
        )

    def _shift(self, history: History) -> Verdict | None:
        change, spread, last = (
            history.change("score_mean"),
            history.level("score_std"),
            history.values("score_mean", 10),
        )
        if change is None or spread is None or last.size < 10:
            return None
        step = median(last[5:]) - median(last[:5])
        if abs(step) <= max(spread, 1e-12) or abs(step) <= self.config.shift * change.noise:
            return None
        return Verdict(
            Severity.INFO,
            "the score made a step",
            f"The mean score changed by {step:+.3g} within five rollouts: other prompts, or another reward?",
            (history.evidence("score_mean", f"step of {abs(step) / max(change.noise, 1e-12):.1f} sd", 10),),
        )

    def causes(self, history: History) -> list[Cause]:
        mean, spread, top = history.level("score_mean"), history.level("score_std"), history.level("score_max")
        known = mean is not None and spread is not None and top is not None
        return [
            cause(
                "reward-changed",
                "The reward model, its weight, its normalisation or a penalty changed.",
                None,
                "Look at what else changed at that step: data, reward functions, resume.",
                "Set normalize_scores, and keep rewards and their weights fixed during a run.",
            ),
            cause(
                "outliers",
                "A few completions with extreme scores make the spread.",
                top - mean > OUTLIER * spread if known else None,  # type: ignore[operator]
                f"Largest score {setting(top)}, mean {setting(mean)}, score_std {setting(spread)} (an outlier from "
                f"{OUTLIER:g} deviations).",
                "Set score_clip to 5.",
            ),
            cause(
                "data-changed",
                "The prompts changed (a curriculum, another mixture).",
                None,
                "Look at the prompts of that step.",
                "If it was meant, tell the diagnostics to learn the start anew (Diagnostics.rearm).",
            ),
        ]


@dataclass(frozen=True)
class SaturationConfig:
    """
    Thresholds.

    Args:
        at_max (`float`): Share of scores at the largest.
        spread (`float`): Spread of the scores over that of the reference.
    """

    at_max: float = 0.5
    spread: float = 0.25


class Saturation(Detector):
    """X13. The reward tells no longer good from better. INFO where the policy rests, WARN where it still drifts."""

    mode = "X13"

    def __init__(self, settings: RunSettings, config: SaturationConfig | None = None) -> None:
        self.config = config or SaturationConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("at-max", self._at_max, ("score_max_frac",), windows=0.5),
            Rule("spread", self._spread, ("score_std",), windows=0.75),
        )

    def _severity(self, history: History) -> Severity:
        kl, entropy = history.change("kl_ref_seq"), history.change("entropy_tok")
        drifts = kl is not None and kl.z > 2.58 and kl.after > 1.25 * kl.before
        narrows = entropy is not None and entropy.z < -2.58 and entropy.after < 0.8 * entropy.before
        return Severity.WARN if (drifts or narrows) and not score_improves(history) else Severity.INFO

    def _at_max(self, history: History) -> Verdict | None:
        share = history.level("score_max_frac")
        if share is None or share < self.config.at_max:
            return None
        return self._verdict(history, "score_max_frac", f"{share:.0%} of the scores are at the maximum.")

    def _spread(self, history: History) -> Verdict | None:
        ratio = history.ratio("score_std")
        if ratio is None or ratio >= self.config.spread:
            return None
        return self._verdict(history, "score_std", f"The scores spread {ratio:.0%} of what they did at the start.")

    def _verdict(self, history: History, name: str, summary: str) -> Verdict:
        evidence = (history.evidence(name, "level of the last W / 4"),)
        title = "reward saturates"
        return Verdict(self._severity(history), title, summary, evidence, ("score_mean", "kl_ref_seq"))

    def causes(self, history: History) -> list[Cause]:
        duplicates = history.level("dup_frac")
        return [
            cause(
                "ceiling",
                "A bounded reward is at its upper end.",
                None if not history.has("score_max") else _near_top(history),
                f"mean {setting(history.level('score_mean'))}, largest {setting(history.level('score_max'))}.",
                "Take harder prompts or end the run; more training only drifts.",
            ),
            cause(
                "duplicates",
                "The completions are the same, so their scores are.",
                None if duplicates is None else duplicates > 0.1,
                f"Share of duplicates {setting(duplicates)}.",
                "See M2.",
            ),
        ]


def _near_top(history: History) -> bool:
    mean, top, spread = history.level("score_mean"), history.level("score_max"), history.level("score_std")
    return mean is not None and top is not None and spread is not None and top - mean < 2 * spread


@dataclass(frozen=True)
class AdvantageConfig:
    """
    Thresholds.

    Args:
        nothing (`float`): Spread in score units that is rounding.
        zero_gradients (`float`): Share of rollouts of W / 2 without a gradient.
    """

    nothing: float = 1e-6
    zero_gradients: float = 0.2


class NoSignal(Detector):
    """X14. Scores or advantages without spread, or no gradient."""

    mode = "X14"

    def __init__(self, settings: RunSettings, config: AdvantageConfig | None = None) -> None:
        self.config = config or AdvantageConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("spread", self._spread, ("score_std|adv_std",), always=True),
            Rule("gradient", self._gradient, ("grad_norm",), always=True),
        )

    def _spread(self, history: History) -> Verdict | None:
        for name in ("score_std", "adv_std"):
            value = history.now(name)
            if value is not None and abs(value) <= self.config.nothing:
                return Verdict(
                    Severity.WARN,
                    "nothing to learn from",
                    f"{name} is {value:.3g}: all completions of the rollout are worth the same.",
                    (history.evidence(name, f"{value:.3g} (alarm below {self.config.nothing:g})", 3, after=value),),
                )
        return None

    def _gradient(self, history: History) -> Verdict | None:
        values = history.values("grad_norm", history.windows.window // 2)
        if values.size < 10 or values.min() > 1e-12:
            return None
        zero = float((values <= 1e-12).mean())
        if zero <= self.config.zero_gradients:
            return None
        return Verdict(
            Severity.WARN,
            "no gradient",
            f"{zero:.0%} of the last {values.size} rollouts had a gradient of exactly 0.",
            (history.evidence("grad_norm", f"share {zero:.2f} (alarm above {self.config.zero_gradients:g})"),),
        )

    def causes(self, history: History) -> list[Cause]:
        spread, advantages, gradient = (
            history.latest("score_std"),
            history.latest("adv_std"),
            history.latest("grad_norm"),
        )
        constant = None if spread is None else spread <= self.config.nothing
        return [
            cause(
                "constant-score",
                "The reward is the same for every completion.",
                constant,
                f"score_std {setting(spread)}.",
                "Score a good and a bad completion by hand; look at how the reward function parses its input.",
            ),
            cause(
                "frozen-parameters",
                "No trainable parameter is in the graph.",
                None if gradient is None else gradient <= 1e-12 and not constant,
                f"grad_norm {setting(gradient)}.",
                "Call print_trainable_parameters(); look whether the adapter is active.",
            ),
            cause(
                "critic-takes-all",
                "The values equal the returns.",
                None if advantages is None else advantages <= self.config.nothing and not constant,
                f"adv_std {setting(advantages)}.",
                "Look whether the values see the score.",
            ),
        ]
