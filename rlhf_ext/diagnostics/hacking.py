"""M3: the reward rises while the quality falls."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import causes
from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Evidence, Severity
from .history import History
from .record import RunSettings
from .signals import decline, first_spread, quality_improves, score_improves, wider
from .statistics import bend_noise, largest_fall

SCALARS_CANNOT_TELL = (
    "Numbers of the training alone cannot tell reward hacking from learning: read the samples, or measure a held-out "
    "quality."
)


@dataclass(frozen=True)
class HackingConfig:
    """
    Thresholds.

    Args:
        few_probes (`int`): Held-out values below which nothing is said.
        doubt (`float`): The noise of n held-out values, itself estimated from them, is taken as `sqrt(1 + doubt / (n - 2))`
            larger.
        warn_sds (`float`): Held-out quality below what the score promises, in standard errors. Where the quality rises and
            settles, two probes in a row pass it in 1 % of series of 20 values and 2 % of 48, on noise without a trend in
            4 % and 12 % (docs/diagnostics.md).
        follow (`float`): Standard deviations of one held-out value that the quality should gain while the score gains a
            standard deviation of its own; the lab's healthy runs gain 1 to 4 (16 notes a value).
        critical_sds (`float`): Held-out quality below its best, in standard deviations of one value.
        disagreement (`float`): Growth of the disagreement between reward models that leaves their common ground.
        outliers (`float`): Share of completions outside the reward model's training data.
        spread (`float`): Spread of the scores over that of the reference, with the mean at the ceiling.
        length_corr (`float`): Correlation of score and length that makes length the main reason.
        length_growth (`float`): Growth of the length over the reference.
        distinct (`float`): Distinct word pairs over those of the reference.
        nll_sds, nll_change (`float`): Reference log-probability outside its band, in standard deviations and relatively;
            in either direction, since both gibberish and phrases by heart are hacks.
        acceleration (`float`): Slope of the score in the later half of two windows over that of the earlier.
        signs (`int`): Signs that must agree; each alone is common in healthy runs.
    """

    few_probes: int = 5
    doubt: float = 4.0
    warn_sds: float = 3.5
    follow: float = 1.0
    critical_sds: float = 3.0
    disagreement: float = 1.5
    outliers: float = 0.2
    spread: float = 0.25
    length_corr: float = 0.5
    length_growth: float = 1.3
    distinct: float = 0.75
    nll_sds: float = 3.0
    nll_change: float = 0.2
    acceleration: float = 2.0
    signs: int = 2


class Hacking(Detector):
    """
    M3, in three tiers: against a held-out quality; from the reward models; from text and scalars. Without a held-out
    quality it says "suspected" and never more than WARN; with one that rises it says nothing.
    """

    mode = "M3"

    def __init__(self, settings: RunSettings, config: HackingConfig | None = None) -> None:
        self.config = config or HackingConfig()
        # Step, held-out value, score, score over its spread.
        self._probes: list[tuple[float, float, float, float]] = []
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule(
                "quality",
                self._against_quality,
                ("quality|eval_score", "score_mean"),
                windows=0.0,
                on="quality|eval_score",
                patience=2,
            ),
            Rule("reward-models", self._reward_models, ("rm_disagreement|rm_outlier_frac", "score_mean")),
            Rule("scalars", self._scalars, ("score_mean", "len_mean|distinct2|ref_nll|kl_ref_seq")),
        )

    def _against_quality(self, history: History) -> Verdict | None:
        """
        The quality, less what the gains of the score should have brought it, falls: it falls itself while the score holds,
        or does not rise while the score does.
        """
        name, score = history.first("quality|eval_score"), history.change("score_mean", 2 * history.windows.window)
        if len(self._probes) < self.config.few_probes or score is None or score.fell:
            return None
        steps, quality, scores, relative = np.array(self._probes).T
        noise = bend_noise(quality) * math.sqrt(1 + self.config.doubt / (quality.size - 2)) * wider(quality.size)
        if noise <= 0:
            return None
        shortfall, best = largest_fall(quality / noise - self.config.follow * relative)
        gain = scores[-1] - scores[best]
        if shortfall <= self.config.warn_sds or gain <= -score.noise:
            return None
        # A score that never rose has not been hacked: the policy drifts.
        if max(gain, scores[-1] - scores[0]) <= 3 * score.noise:
            return None
        fall = decline(history, name)
        # The reward model on new prompts is no judge of itself: a fall is overfitting to the prompts.
        sure = name == "quality" and fall is not None and fall.in_noise > self.config.critical_sds
        statistic = (
            f"{shortfall:.1f} standard errors below what the score promises (alarm above {self.config.warn_sds:g})"
        )
        return Verdict(
            Severity.CRITICAL if sure else Severity.WARN,
            "reward hacking" if name == "quality" else "the score rises on the training prompts alone",
            f"The score went from {scores[best]:.3g} at step {steps[best]:.0f} to {scores[-1]:.3g} while {name} went from "
            f"{quality[best]:.3g} to {quality[-1]:.3g}. The best checkpoint is rather the one near step {steps[best]:.0f}.",
            (history.evidence(name, statistic, None, float(quality[best]), float(quality[-1])),),
            (
                "score_mean",
                "kl_ref_seq",
                "len_mean",
            ),
        )

    def note(self, history: History) -> None:
        """Each held-out value with the score of the five rollouts up to it, also over the spread of the scores."""
        name = history.first("quality|eval_score")
        value, scores, start = history.now(name), history.values("score_mean", 5), first_spread(history)
        self._probes = [probe for probe in self._probes if probe[0] < history.step]
        if value is None or not scores.size or start is None:
            return
        # Of a reward that is rescaled both grow; of one that saturates only the first spread tells.
        spread = max(start, history.level("score_std", 5) or 0.0)
        score = float(scores.mean())
        self._probes.append((history.step, value, score, score / spread if spread > 0 else 0.0))
        del self._probes[: -2 * history.windows.window]

    def _reward_models(self, history: History) -> Verdict | None:
        signs, config = [], self.config
        ratio, outliers = history.ratio("rm_disagreement"), history.level("rm_outlier_frac")
        if ratio is not None and ratio > config.disagreement:
            signs.append(history.evidence("rm_disagreement", f"{ratio:.2f} of the reference"))
        if outliers is not None and outliers > config.outliers:
            signs.append(history.evidence("rm_outlier_frac", f"share {outliers:.2f} (sign above {config.outliers:g})"))
        spread, top, mean = history.ratio("score_std"), history.level("score_max"), history.level("score_mean")
        start = history.reference("score_mean")
        if spread is not None and top is not None and mean is not None and start is not None:
            if spread < config.spread and mean - start.median > 0.9 * (top - start.median):
                signs.append(history.evidence("score_std", f"{spread:.2f} of the reference, mean near the maximum"))
        return self._suspicion(history, signs)

    def _scalars(self, history: History) -> Verdict | None:
        if not score_improves(history, 2 * history.windows.window):
            return None
        found = (self._length_sign(history), self._variety_sign(history), self._band_sign(history))
        return self._suspicion(history, [sign for sign in (*found, self._rush_sign(history)) if sign is not None])

    def _length_sign(self, history: History) -> Evidence | None:
        growth, corr = history.ratio("len_mean"), history.change("score_len_corr", 2 * history.windows.window)
        if growth is None or corr is None or growth <= self.config.length_growth:
            return None
        if corr.after <= self.config.length_corr or corr.after <= corr.before:
            return None
        return history.evidence(
            "len_mean", f"{growth:.2f} of the reference, correlated {corr.after:.2f} with the score"
        )

    def _variety_sign(self, history: History) -> Evidence | None:
        ratio = history.ratio("distinct2")
        if ratio is None or ratio >= self.config.distinct:
            return None
        return history.evidence("distinct2", f"{ratio:.2f} of the reference (sign below {self.config.distinct:g})")

    def _band_sign(self, history: History) -> Evidence | None:
        level, band = history.level("ref_nll"), history.reference("ref_nll")
        if level is None or band is None or band.median <= 0:
            return None
        if abs(level - band.median) <= self.config.nll_change * band.median:
            return None
        if abs(level - band.median) <= self.config.nll_sds * band.sd:
            return None
        return history.evidence("ref_nll", f"{level / band.median:.2f} of the reference")

    def _rush_sign(self, history: History) -> Evidence | None:
        """KL up, entropy down, and the score rising faster than before."""
        kl, entropy = history.change("kl_ref_seq"), history.ratio("entropy_tok")
        late, whole = history.change("score_mean"), history.change("score_mean", 2 * history.windows.window)
        if kl is None or entropy is None or late is None or whole is None or kl.z < 2.58 or entropy > 0.5:
            return None
        early_rise, late_rise = late.before - whole.before, late.after - late.before
        if late_rise <= self.config.acceleration * max(early_rise, late.noise):
            return None
        return history.evidence("score_mean", f"rose by {late_rise:.3g} in this window, {early_rise:.3g} in the last")

    def _suspicion(self, history: History, signs: list[Evidence]) -> Verdict | None:
        if len(signs) < self.config.signs or quality_improves(history):
            return None
        return Verdict(
            Severity.WARN,
            "reward hacking suspected",
            f"{len(signs)} signs agree ({', '.join(sign.metric for sign in signs)}). {SCALARS_CANNOT_TELL}",
            tuple(signs),
        )

    def causes(self, history: History) -> list[Cause]:
        return [
            _length_bias(history),
            causes.weak_penalty(history),
            _out_of_distribution(history),
            causes.peaked_reward(history),
            _eos_leak(history),
        ]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"probes": [list(probe) for probe in self._probes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._probes = [tuple(probe) for probe in state["probes"]]


def _length_bias(history: History) -> Cause:
    corr, growth = history.level("score_len_corr"), history.ratio("len_mean")
    return cause(
        "length-bias",
        "The reward model prefers long (or short) answers whatever they say.",
        None if corr is None or growth is None else abs(corr) > 0.5 and not 1 / 1.3 <= growth <= 1.3,
        f"Correlation of score and length {setting(corr)}; length over that of the start {setting(growth)}.",
        "Subtract the part of the score that length explains, train the reward model on pairs of like length, or lower "
        "max_completion_length.",
    )


def _out_of_distribution(history: History) -> Cause:
    ratio, outliers = history.ratio("rm_disagreement"), history.level("rm_outlier_frac")
    known = [ratio > 1.5] if ratio is not None else []
    known += [outliers > 0.2] if outliers is not None else []
    return cause(
        "reward-model-out-of-distribution",
        "The policy writes what the reward model was never trained on.",
        any(known) if known else None,
        f"Disagreement of reward models over the start {setting(ratio)}; share of outliers {setting(outliers)}."
        if known
        else "Score the samples with a second reward model.",
        "Stop, take the checkpoint at the best held-out quality, and train the reward model on pairs from this policy; "
        "bound the score with score_clip. A lower learning_rate only delays it.",
    )


def _eos_leak(history: History) -> Cause:
    penalty, eos, start = (
        history.settings.missing_eos_penalty,
        history.level("eos_rate"),
        history.reference("eos_rate"),
    )
    known = penalty is not None and eos is not None and start is not None
    return cause(
        "missing-eos-penalty",
        "The rise is that of completions that end, which the penalty for those without EOS pays for.",
        penalty > 0 and eos > start.median + 0.2 if known else None,  # type: ignore[operator, union-attr]
        f"missing_eos_penalty {setting(penalty)}; share with EOS {setting(eos)}.",
        "Read the raw score of the reward model; lower missing_eos_penalty.",
    )
