"""X8 to X11: lengths, endings and loops of the completions."""

from dataclasses import dataclass
from typing import Any

from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import describe, quality_improves, score_improves


@dataclass(frozen=True)
class LengthConfig:
    """
    Thresholds.

    Args:
        growth (`float`): Length over that of a window ago.
        correlation (`float`): Of score and length within a rollout; where longer is better, it says so too, which is why a
            held-out quality that rises silences the rule.
        collapse (`float`): Length over that of the reference.
        few_tokens (`float`): Median length that is no answer, where
        some_tokens (`float`): the reference was at least so long.
    """

    growth: float = 1.3
    correlation: float = 0.3
    collapse: float = 0.6
    few_tokens: float = 8.0
    some_tokens: float = 16.0


class LengthExploitation(Detector):
    """X8. Longer and longer, scored for it, and no better by the held-out quality."""

    mode = "X8"

    def __init__(self, settings: RunSettings, config: LengthConfig | None = None) -> None:
        self.config = config or LengthConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("longer", self._longer, ("len_mean", "score_len_corr", "quality")),)

    def _longer(self, history: History) -> Verdict | None:
        length, corr = history.change("len_mean"), history.level("score_len_corr")
        quality = history.change("quality", 2 * history.windows.window)
        if length is None or corr is None or quality is None or length.after < self.config.growth * length.before:
            return None
        if corr <= self.config.correlation or quality.improved:
            return None
        return Verdict(
            Severity.WARN,
            "length is exploited",
            f"The completions went {describe(length, 'tokens')}, the score goes with the length (correlation {corr:.2f}), "
            "and the held-out quality did not rise.",
            (history.evidence("len_mean", f"{length.growth or 0:.2f} times", None, length.before, length.after),),
            (
                "score_len_corr",
                "quality",
                "score_mean",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        return [
            cause(
                "length-bias",
                "The reward model prefers long answers.",
                (history.level("score_len_corr") or 0.0) > 0.5,
                f"Correlation of score and length {setting(history.level('score_len_corr'))}.",
                "Lower max_completion_length, subtract what length explains from the score, or train the reward model on "
                "pairs of like length.",
            )
        ]


class LengthCollapse(Detector):
    """X9. Shorter and shorter, without gain."""

    mode = "X9"

    def __init__(self, settings: RunSettings, config: LengthConfig | None = None) -> None:
        self.config = config or LengthConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("shorter", self._shorter, ("len_mean", "score_mean"), windows=0.75),)

    def _shorter(self, history: History) -> Verdict | None:
        ratio, start = history.ratio("len_mean"), history.reference("len_mean")
        median = history.level("len_p50") or history.level("len_mean")
        if ratio is None or start is None or median is None:
            return None
        tiny = median < self.config.few_tokens and start.median >= self.config.some_tokens
        if (ratio > self.config.collapse and not tiny) or score_improves(history):
            return None
        return Verdict(
            Severity.WARN,
            "length collapses",
            f"The completions have {ratio:.0%} of their length at the start ({median:.3g} tokens), and the score did not "
            "rise.",
            (history.evidence("len_mean", f"{ratio:.2f} of the reference (alarm below {self.config.collapse:g})"),),
            (
                "score_mean",
                "kl_ref_seq",
                "eos_rate",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        penalty, eos = history.settings.missing_eos_penalty, history.change("eos_rate", 2 * history.windows.window)
        return [
            cause(
                "value-start",
                "The critic's first values are biased by position, which PPO answers by ending early.",
                None
                if history.settings.critic_warmup_rollouts is None
                else not history.settings.critic_warmup_rollouts,
                f"critic_warmup_rollouts {setting(history.settings.critic_warmup_rollouts)}.",
                "Set critic_warmup_rollouts=10, lam=1.0, or start the critic as the reward model.",
            ),
            cause(
                "kl-per-token",
                "The penalty adds up over tokens, so that a short answer is a cheap one.",
                None,
                f"beta {setting(history.level('beta'))}, KL {setting(history.level('kl_ref_seq'))} nats/sequence.",
                "Lower beta, or raise kl_target.",
            ),
            cause(
                "eos-reward",
                "Ending is what is paid for.",
                None if penalty is None or eos is None else penalty > 0 and eos.after > eos.before,
                f"missing_eos_penalty {setting(penalty)}.",
                "Lower missing_eos_penalty.",
            ),
        ]


@dataclass(frozen=True)
class TruncationConfig:
    """
    Thresholds.

    Args:
        some, many (`float`): Share of completions cut at the limit (verl's documentation warns at 0.1).
        all (`float`): If the run starts from here, without a penalty, the task is one of fixed length: INFO, also once more
            of them end.
        eos_drop (`float`): Fall of the share that ends with EOS.
    """

    some: float = 0.1
    many: float = 0.3
    all: float = 0.95
    eos_drop: float = 0.2


class Truncation(Detector):
    """X10. Completions are cut off instead of ending: the score of half a sentence means little."""

    mode = "X10"

    def __init__(self, settings: RunSettings, config: TruncationConfig | None = None) -> None:
        self.config = config or TruncationConfig()
        super().__init__(settings)
        self._first: float | None = None

    def note(self, history: History) -> None:
        if self._first is None:
            self._first = self._share(history)

    @staticmethod
    def _share(history: History) -> float | None:
        cut, eos = history.now("trunc_rate"), history.now("eos_rate")
        return 1 - eos if cut is None and eos is not None else cut

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._first = state["first"]

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("cut", self._cut, ("trunc_rate|eos_rate",), always=True),
            Rule("eos", self._eos_falls, ("eos_rate",), windows=0.75),
        )

    def _cut(self, history: History) -> Verdict | None:
        share = self._share(history)
        if share is None or self._first is None or share <= self.config.some:
            return None
        fixed_length = self._first >= self.config.all and not history.settings.missing_eos_penalty
        warn = share > self.config.many and not fixed_length
        limit = history.settings.max_completion_length
        return Verdict(
            Severity.WARN if warn else Severity.INFO,
            "completions are cut off",
            f"{share:.0%} of the completions do not end within {'their limit' if limit is None else f'{limit} tokens'}."
            + (" If a text of fixed length is what you want, that is as it should be." if fixed_length else ""),
            (
                history.evidence(
                    history.first("trunc_rate|eos_rate"), f"cut off {share:.2f} (alarm above {self.config.many:g})", 3
                ),
            ),
        )

    def _eos_falls(self, history: History) -> Verdict | None:
        start, level = history.reference("eos_rate"), history.level("eos_rate")
        if start is None or level is None or level > start.median - self.config.eos_drop:
            return None
        return Verdict(
            Severity.WARN,
            "completions no longer end",
            f"The share of completions that end with EOS fell from {start.median:.0%} to {level:.0%}.",
            (
                history.evidence(
                    "eos_rate", f"fell by {start.median - level:.2f} (alarm from {self.config.eos_drop:g})"
                ),
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        limit, long, penalty = (
            history.settings.max_completion_length,
            history.level("len_p50"),
            history.settings.missing_eos_penalty,
        )
        eos = history.level("eos_rate")
        return [
            cause(
                "eos-never-sampled",
                "No completion ends: the stop token is another one, the chat template lacks it, or EOS is masked.",
                None if eos is None else eos == 0,
                f"Share with EOS {setting(eos)}.",
                "Compare generation_config.eos_token_id with the token the template ends a turn with.",
            ),
            cause(
                "limit-too-low",
                "Answers need more tokens than they may have.",
                None if limit is None or long is None else long >= limit,
                f"max_completion_length {setting(limit)}, median length {setting(long)}.",
                "Raise max_completion_length.",
            ),
            cause(
                "nothing-for-ending",
                "A cut completion scores like one that ends.",
                None if penalty is None else penalty == 0,
                f"missing_eos_penalty {setting(penalty)}.",
                "Set missing_eos_penalty=1.0.",
            ),
        ]


@dataclass(frozen=True)
class RepetitionConfig:
    """
    Thresholds.

    Args:
        share (`float`): Share of repeated word 4-grams within a completion; natural text has under 0.05.
        growth (`float`): Over the reference, and
        least (`float`): at least that much, for nothing doubles easily; texts whose quality holds reach 0.12 in the lab.
    """

    share: float = 0.3
    growth: float = 2.0
    least: float = 0.15


class Repetition(Detector):
    """X11. Completions run in circles."""

    mode = "X11"

    def __init__(self, settings: RunSettings, config: RepetitionConfig | None = None) -> None:
        self.config = config or RepetitionConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("loops", self._loops, ("rep4",), windows=0.0, on="rep4"),)

    def _loops(self, history: History) -> Verdict | None:
        share, start = history.now("rep4"), history.reference("rep4")
        if share is None or share < self.config.least or quality_improves(history):
            return None
        if start is None and share <= self.config.share:
            return None
        if start is not None and share < self.config.growth * start.median:
            return None
        return Verdict(
            Severity.WARN,
            "completions repeat themselves",
            f"{share:.0%} of the word 4-grams of a completion stand in it before.",
            (history.evidence("rep4", f"{share:.2f} (alarm from {self.config.share:g})", 1, after=share),),
        )

    def causes(self, history: History) -> list[Cause]:
        temperature, corr = history.settings.temperature, history.level("score_len_corr")
        return [
            cause(
                "reward-blind-to-loops",
                "The reward model does not mind, or likes the length.",
                None if corr is None else corr > 0.5,
                f"Correlation of score and length {setting(corr)}.",
                "Add a reward function that subtracts rep4; train the reward model on such answers.",
            ),
            cause(
                "cold-sampling",
                "A low temperature falls into loops.",
                None if temperature is None else temperature < 0.9,
                f"temperature {setting(temperature)}.",
                "Set temperature=1.0.",
            ),
            cause(
                "no-eos",
                "The text goes on after its end.",
                None if not history.has("trunc_rate") else (history.level("trunc_rate") or 0.0) > 0.3,
                f"Share cut off {setting(history.level('trunc_rate'))}.",
                "See X10; set missing_eos_penalty=1.0.",
            ),
        ]
