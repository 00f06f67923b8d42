"""M2: the outputs become uniform."""

from dataclasses import dataclass
from functools import partial

from . import causes
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import describe, quality_improves, score_gains


@dataclass(frozen=True)
class CollapseConfig:
    """
    Thresholds.

    Args:
        low (`float`): Entropy over that of the reference; healthy runs end at 0.11 to 0.36, so it needs more.
        trend (`float`): Block-median z of a fall, one-sided 0.5 %.
        drop (`float`): Entropy over that of a window ago; without it one of three healthy public logs raises an alarm.
        duplicates (`float`): Share of completions that stand under another prompt too; 0 in a model that reads its prompt
            and writes more than a few words, twice in a row at most 0.06 in the lab's healthy runs of 64 short notes.
        probe_duplicates (`float`): The same of the answers to the probe's prompts, 16 or more by default; WARN at most.
        many_duplicates (`float`): From here the output is destroyed, whatever the score says.
        duplicates_growth (`float`): Duplicates over those of the reference: tasks with few right answers have some.
        low_distinct (`float`): Distinct word pairs over those of the reference, at like length.
        like_length (`float`): Ratio of lengths within which distinct-2, which falls with length, may be compared.
        explosion (`float`): Entropy over that of the reference that, with a falling score, is the opposite failure.
    """

    low: float = 0.3
    trend: float = 2.58
    drop: float = 0.8
    duplicates: float = 0.08
    probe_duplicates: float = 0.25
    many_duplicates: float = 0.5
    duplicates_growth: float = 2.0
    low_distinct: float = 0.5
    like_length: float = 1.25
    explosion: float = 1.5


class Collapse(Detector):
    """M2. By the outcome (duplicates, distinct-2), or by an entropy that falls while the score stands still."""

    mode = "M2"

    def __init__(self, settings: RunSettings, config: CollapseConfig | None = None) -> None:
        self.config = config or CollapseConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            *self._by_outcome("", "dup_frac", "distinct2", "completions", self.config.duplicates),
            *self._by_outcome(
                "probe-", "probe_dup_frac", "probe_distinct2", "answers to the probe", self.config.probe_duplicates
            ),
            Rule("entropy", self._entropy, ("entropy_tok", "score_mean")),
            Rule("explosion", self._explosion, ("entropy_tok", "score_mean")),
        )

    def _by_outcome(self, prefix: str, same: str, pairs: str, what: str, limit: float) -> tuple[Rule, Rule]:
        """The rules on texts: those of the rollouts, or the answers to the probe's prompts, which are always the same."""
        duplicates, distinct = partial(self._duplicates, same, what, limit), partial(self._distinct, pairs, what)
        return (
            Rule(f"{prefix}duplicates", duplicates, (same,), windows=0.0, on=same, patience=2),
            Rule(f"{prefix}distinct", distinct, (pairs,), windows=0.5, on=pairs, patience=2),
        )

    def _duplicates(self, metric: str, what: str, limit: float, history: History) -> Verdict | None:
        share, reference = history.now(metric), history.reference(metric)
        if share is None or share <= limit:
            return None
        # A probe may be of a handful of answers, by which no run is stopped.
        many = metric == "dup_frac" and share > self.config.many_duplicates
        if not many and (reference is None or share < self.config.duplicates_growth * reference.median):
            return None
        statistic = f"{metric} = {share:.2f} (alarm above {limit:g})"
        return Verdict(
            Severity.CRITICAL if many else Severity.WARN,
            "the same answer to different prompts",
            f"{share:.0%} of the {what} stand word for word under another prompt too.",
            (history.evidence(metric, statistic, 1, after=share),),
            (
                "score_mean",
                "kl_ref_seq",
                "len_mean",
            ),
        )

    def _distinct(self, metric: str, what: str, history: History) -> Verdict | None:
        pairs, reference, length = history.now(metric), history.reference(metric), history.ratio("len_mean")
        if pairs is None or reference is None or reference.median <= 0 or quality_improves(history):
            return None
        if pairs >= self.config.low_distinct * reference.median:
            return None
        if length is not None and not 1 / self.config.like_length <= length <= self.config.like_length:
            return None
        statistic = f"{pairs / reference.median:.2f} of the reference (alarm below {self.config.low_distinct:g})"
        return Verdict(
            Severity.WARN,
            "less and less variety",
            f"Distinct word pairs of the {what} fell from {reference.median:.2f} to {pairs:.2f} of all, at like length.",
            (history.evidence(metric, statistic, 1, after=pairs),),
            (
                "score_mean",
                "kl_ref_seq",
                "len_mean",
            ),
        )

    def _entropy(self, history: History) -> Verdict | None:
        ratio, change = history.ratio("entropy_tok"), history.change("entropy_tok")
        if ratio is None or ratio >= self.config.low or change is None:
            return None
        if change.z >= -self.config.trend or change.after > self.config.drop * change.before:
            return None
        if score_gains(history) or quality_improves(history):
            return None
        statistic = f"{ratio:.2f} of the reference (alarm below {self.config.low:g}), trend z = {change.z:.2f}"
        return Verdict(
            Severity.WARN,
            "entropy falls without gain",
            f"The entropy went {describe(change, 'nats/token')} within {history.windows.window} rollouts, to "
            f"{ratio:.0%} of its start, and the score did not rise.",
            (history.evidence("entropy_tok", statistic),),
            (
                "score_mean",
                "kl_ref_seq",
                "len_mean",
            ),
        )

    def _explosion(self, history: History) -> Verdict | None:
        ratio, score = history.ratio("entropy_tok"), history.change("score_mean")
        if ratio is None or ratio <= self.config.explosion or score is None or not score.fell:
            return None
        statistic = f"{ratio:.2f} of the reference (alarm above {self.config.explosion:g})"
        return Verdict(
            Severity.WARN,
            "entropy explosion",
            f"The entropy is {ratio:.2g} times that of the start while the score went {describe(score, 'score')}.",
            (history.evidence("entropy_tok", statistic),),
            (
                "score_mean",
                "kl_ref_seq",
                "len_mean",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        if (history.ratio("entropy_tok") or 0.0) > 1.0:
            return [causes.large_entropy_bonus(history), causes.large_updates(history)]
        return [
            causes.large_updates(history),
            causes.weak_penalty(history),
            causes.no_entropy_bonus(history),
            causes.cold_sampling(history),
            causes.peaked_reward(history),
        ]
