"""X1 to X4: numbers that cannot be, log-probabilities that do not agree."""

import math
from dataclasses import dataclass

from . import causes
from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings

UNDEFINED_AT_TIMES = {
    "explained_var", "score_len_corr", "distinct2", "dup_frac", "rep4", "quality", "eval_score", "probe_dup_frac",
    "probe_distinct2",
}  # fmt: skip
"""Not a number where the input is constant or empty, which is no failure of the training."""
ALWAYS_THERE = ("policy_loss", "value_loss", "score_mean", "kl_ref_seq", "kl_ref_tok", "entropy_tok", "grad_norm")
"""What a trainer logs at every rollout; loggers that drop NaN leave a hole instead."""


@dataclass(frozen=True)
class NonFiniteConfig:
    """
    Thresholds.

    Args:
        scaler_rows (`int`): First rollouts in which fp16 loss scaling overflows by design while it looks for its scale.
        present (`int`): Rows that a metric must have been in before its absence says something.
        absent (`int`): Rows in a row without it.
    """

    scaler_rows: int = 10
    present: int = 10
    absent: int = 3


class NonFinite(Detector):
    """X1. NaN or infinity: at once. Also a metric that was always there and no longer is."""

    mode = "X1"

    def __init__(self, settings: RunSettings, config: NonFiniteConfig | None = None) -> None:
        self.config = config or NonFiniteConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("value", self._value, always=True, patience=1),
            Rule("missing", self._missing, always=True, patience=1),
        )

    def _value(self, history: History) -> Verdict | None:
        assert history.record is not None
        bad = [name for name in history.not_finite if name not in UNDEFINED_AT_TIMES]
        count = history.now("nonfinite") or 0
        if history.settings.dtype == "float16" and bad == ["grad_norm"] and history.rows <= self.config.scaler_rows:
            return None
        if not bad and count <= 0:
            return None
        values = history.record.values
        told = f"{count:g} scores or optimizer steps of the rollout, which were left out"
        if bad:
            told = ", ".join(f"{name} = {values[name]}" for name in bad) + ". Everything learned from here on is lost"
        return Verdict(
            Severity.CRITICAL,
            "numbers that are not finite",
            f"At step {history.step}: {told}.",
            tuple(history.evidence(name, f"{name} = {values[name]}") for name in bad or ["nonfinite"]),
        )

    def _missing(self, history: History) -> Verdict | None:
        assert history.record is not None
        gone = [name for name in ALWAYS_THERE if self._stopped(history, name)]
        # A row without any of them is no rollout, such as an evaluation.
        if not gone or not any(history.now(name) is not None for name in ALWAYS_THERE):
            return None
        return Verdict(
            Severity.WARN,
            "a metric stopped being logged",
            f"{', '.join(gone)}: in every rollout up to {self.config.absent} ago, absent since. Loggers drop NaN.",
            tuple(history.evidence(name, f"absent for {self.config.absent} rollouts", 50) for name in gone),
        )

    def _stopped(self, history: History, name: str) -> bool:
        if history.now(name) is not None or not history.has(name):
            return False
        rows = history.logged(name, self.config.present + self.config.absent)[0]
        return rows.size == self.config.present and rows[-1] == history.rows - self.config.absent - 1

    def causes(self, history: History) -> list[Cause]:
        dtype, limit, spread = history.settings.dtype, history.settings.max_grad_norm, history.latest("score_std")
        values = history.record.values if history.record is not None else {}
        score, counted = values.get("score_mean"), (history.now("nonfinite") or 0) > 0
        # Where everything that was computed from the rollout is finite, single scores are what was not.
        single = counted and bool(values) and not history.not_finite
        return [
            cause(
                "fp16-overflow",
                "float16 overflows above 65504.",
                None if dtype is None else dtype == "float16",
                f"dtype {setting(dtype)}.",
                "Set bf16=True instead of fp16.",
            ),
            cause(
                "reward-not-finite",
                "A reward function returned NaN or infinity.",
                None if score is None else not math.isfinite(score) or single,
                f"score_mean {setting(score)}" + (", and only single numbers were not finite." if single else "."),
                "Let the reward function return a number for an empty or cut completion too; set score_clip.",
            ),
            cause(
                "constant-whitened",
                "Something constant was divided by its spread.",
                None if spread is None else spread <= 1e-6,
                f"score_std {setting(spread)}.",
                "See that the scores differ within a rollout; set normalize_advantages=False to be sure.",
            ),
            cause(
                "steps-too-large",
                "The learning rate blew the weights up.",
                None if limit is None else not 0 < limit <= 10,
                f"learning_rate {setting(history.learning_rates()[1])}, max_grad_norm {setting(limit)}.",
                "Go back to the last good checkpoint, halve learning_rate, set max_grad_norm=1.0.",
            ),
        ]


@dataclass(frozen=True)
class NegativeKLConfig:
    """
    Thresholds.

    Args:
        sds (`float`): Standard errors below zero; a true KL is never negative.
        nats (`float`): Nats per sequence below zero where no error is logged; TRL warns there too.
        k3 (`float`): Nats per sequence of the estimator k3 at which k1 cannot be 0 or less, nor
        apart (`float`): that many times smaller, over W / 2. On its own samples both have the same mean; the median of 15
            rollouts was at most 3 times larger in the lab, and 5 to 20 times where sampling was hotter or EOS masked.
    """

    sds: float = 2.0
    nats: float = 1.0
    k3: float = 1.0
    apart: float = 4.0


class NegativeKL(Detector):
    """X2. A negative KL: the log-probabilities are not those of the distribution that was sampled."""

    mode = "X2"

    def __init__(self, settings: RunSettings, config: NegativeKLConfig | None = None) -> None:
        self.config = config or NegativeKLConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("negative", self._negative, ("kl_ref_seq|kl_ref_tok",), always=True),
            Rule("estimators", self._estimators, ("kl_ref_seq", "kl_ref_k3"), always=True),
            Rule("apart", self._far_apart, ("kl_ref_seq", "kl_ref_k3"), windows=0.5),
        )

    def _negative(self, history: History) -> Verdict | None:
        name = history.first("kl_ref_seq|kl_ref_tok")
        kl, se = history.now(name), history.now("kl_se")
        if kl is None or kl >= 0:
            return None
        nats = self.config.nats if name == "kl_ref_seq" else self.config.nats / (history.now("len_mean") or 30.0)
        limit = -nats if se is None or name != "kl_ref_seq" else -min(self.config.sds * se, nats)
        if kl >= limit:
            return None
        gain, score = (history.now("beta") or 0.0) * -kl, history.now("score_mean")
        paid = f" beta * KL adds {gain:.3g} to a score of {score:.3g}." if gain and score is not None else ""
        return Verdict(
            Severity.WARN,
            "negative KL",
            f"The KL to the reference is {kl:.3g} {history.evidence(name, '').unit}, which a KL cannot be.{paid}",
            (history.evidence(name, f"KL = {kl:.3g} (alarm below {limit:.3g})", 3, after=kl),),
        )

    def _estimators(self, history: History) -> Verdict | None:
        k1, k3 = history.now("kl_ref_seq"), history.now("kl_ref_k3")
        if k1 is None or k3 is None or k1 > 0 or k3 <= self.config.k3:
            return None
        return self._disagree(history, k1, k3, 3)

    def _far_apart(self, history: History) -> Verdict | None:
        rows = history.windows.window // 2
        k1, k3 = history.level("kl_ref_seq", rows), history.level("kl_ref_k3", rows)
        if k1 is None or k3 is None or k3 <= max(self.config.k3, self.config.apart * k1):
            return None
        return self._disagree(history, k1, k3, rows)

    @staticmethod
    def _disagree(history: History, k1: float, k3: float, rows: int) -> Verdict:
        return Verdict(
            Severity.WARN,
            "KL estimators disagree",
            f"k1 gives {k1:.3g} and k3 gives {k3:.3g} nats/sequence for the same distance.",
            (history.evidence("kl_ref_k3", f"k1 = {k1:.3g}, k3 = {k3:.3g}", rows, after=k3),),
        )

    def causes(self, history: History) -> list[Cause]:
        return sampling_causes(history)


@dataclass(frozen=True)
class FirstPassConfig:
    """
    Thresholds.

    Args:
        float32 (`float`): Largest |ratio - 1| before any update; healthy below 1e-4, dropout makes 0.1 and more.
        other (`float`): The same in lower precision, where single tokens differ by 0.05.
    """

    float32: float = 0.01
    other: float = 0.2


class FirstPass(Detector):
    """X3. The ratio is not 1 before the first update: the same weights give other log-probabilities."""

    mode = "X3"

    def __init__(self, settings: RunSettings, config: FirstPassConfig | None = None) -> None:
        self.config = config or FirstPassConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("ratio", self._deviates, ("ratio_first_dev",), always=True),)

    def _deviates(self, history: History) -> Verdict | None:
        exact = history.settings.dtype == "float32"
        limit, deviation = self.config.float32 if exact else self.config.other, history.now("ratio_first_dev")
        if deviation is None or deviation <= limit:
            return None
        return Verdict(
            Severity.WARN,
            "the ratio does not start at 1",
            f"Before any update the ratio is up to {deviation:.3g} away from 1: rollout and update disagree about the "
            "same weights.",
            (history.evidence("ratio_first_dev", f"{deviation:.3g} (alarm above {limit:g})", 3, after=deviation),),
        )

    def causes(self, history: History) -> list[Cause]:
        # Two forward calls disagree; how the text was sampled matters only where the sampler's numbers are used.
        order = ("temperature", "dropout", "padding-or-mask", "adapter-or-precision", "sampler-settings")
        return sorted(sampling_causes(history), key=lambda each: order.index(each.name))


def sampling_causes(history: History) -> list[Cause]:
    """Why log-probabilities of the same text differ."""
    deviation, dtype = history.latest("ratio_first_dev"), history.settings.dtype
    agree = None if deviation is None else deviation <= (0.01 if dtype == "float32" else 0.2)
    return [
        causes.unscaled_temperature(history),
        cause(
            "sampler-settings",
            "top_k, top_p, min_p, a repetition penalty or a minimal length changed what is sampled.",
            None,
            "Look at generation_kwargs and at the model's generation_config.",
            "Set top_k=0, top_p=1.0, repetition_penalty=1.0, and no minimal length.",
        ),
        cause(
            "dropout",
            "Dropout is on in one of the forward passes.",
            None if agree is None else False if agree else None,
            f"First-pass deviation of the ratio {setting(deviation)}.",
            "Set disable_dropout=True.",
        ),
        cause(
            "padding-or-mask",
            "Position ids or masks differ between generation and forward (left padding, EOS masked).",
            None if agree is None else False if agree else None,
            f"First-pass deviation of the ratio {setting(deviation)}.",
            "Compare the log-probabilities of one completion alone with those in a padded batch.",
        ),
        cause(
            "adapter-or-precision",
            "The reference runs with the adapter on, or in another precision.",
            None,
            "The KL of the first rollout must be 0 within its error.",
            "Look at which adapter is active and at the dtype of both models.",
        ),
    ]


@dataclass(frozen=True)
class GapConfig:
    """
    Thresholds, in nats per token.

    Args:
        info (`float`): bf16 engines differ by 0.01 to 0.02.
        warn (`float`): From here the update is off-policy from its first step (alarm of verl's example).
    """

    info: float = 0.05
    warn: float = 0.1


class RolloutGap(Detector):
    """X4. The engine that samples and the trainer disagree."""

    mode = "X4"

    def __init__(self, settings: RunSettings, config: GapConfig | None = None) -> None:
        self.config = config or GapConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("gap", self._gap, ("rollout_gap",), always=True),)

    def _gap(self, history: History) -> Verdict | None:
        gap = abs(history.now("rollout_gap") or 0.0)
        if gap <= self.config.info:
            return None
        return Verdict(
            Severity.WARN if gap > self.config.warn else Severity.INFO,
            "sampler and trainer disagree",
            f"The log-probabilities of the engine that samples differ by {gap:.3g} nats/token from the trainer's.",
            (history.evidence("rollout_gap", f"{gap:.3g} (alarm above {self.config.warn:g})", 3, after=gap),),
        )

    def causes(self, history: History) -> list[Cause]:
        return [
            cause(
                "engine-precision",
                "The engine runs in another precision, or quantised.",
                None,
                "Compare the dtype of both.",
                "Give the engine the trainer's dtype, without quantisation of weights or cache.",
            ),
            cause(
                "stale-weights",
                "The engine samples with old weights.",
                None,
                "The gap of the first rollout is small and grows from there.",
                "Synchronise the weights before every rollout.",
            ),
            causes.unscaled_temperature(history),
        ]
