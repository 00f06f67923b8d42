"""X5 and X6: one rollout moves the policy too far. X15: gradients spike. X16: the controller of beta fails."""

from dataclasses import dataclass

import numpy as np

from . import causes
from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import distance, still_beta
from .statistics import median, robust_sd


@dataclass(frozen=True)
class ClipConfig:
    """
    Thresholds.

    Args:
        share (`float`): Median share of clipped ratios over W / 4; below 0.1 in healthy RLHF.
    """

    share: float = 0.2


class ClipSaturation(Detector):
    """X5. Much of each rollout is clipped, so that later epochs learn from little of it."""

    mode = "X5"

    def __init__(self, settings: RunSettings, config: ClipConfig | None = None) -> None:
        self.config = config or ClipConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("share", self._share, ("pg_clipfrac",), windows=0.25),)

    def _share(self, history: History) -> Verdict | None:
        share = history.level("pg_clipfrac")
        if share is None or share <= self.config.share:
            return None
        return Verdict(
            Severity.WARN,
            "many ratios clipped",
            f"{share:.0%} of the tokens are clipped, over {history.windows.window // 4} rollouts.",
            (history.evidence("pg_clipfrac", f"{share:.2f} (alarm above {self.config.share:g})"),),
            (
                "kl_update",
                "score_mean",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        return update_causes(history)


@dataclass(frozen=True)
class UpdateConfig:
    """
    Thresholds in nats per token per rollout.

    Args:
        info (`float`): Usual limit of approx_kl (37 details).
        warn (`float`): A rollout then changes one token in twenty by a factor of e.
    """

    info: float = 0.02
    warn: float = 0.05


class UpdateSize(Detector):
    """X6. The KL of one update is large. A hard limit: it is tested from the first rollout."""

    mode = "X6"

    def __init__(self, settings: RunSettings, config: UpdateConfig | None = None) -> None:
        self.config = config or UpdateConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (Rule("size", self._size, ("kl_update",), always=True),)

    def _size(self, history: History) -> Verdict | None:
        update = history.now("kl_update")
        if update is None or update <= self.config.info:
            return None
        return Verdict(
            Severity.WARN if update > self.config.warn else Severity.INFO,
            "updates too large",
            f"One rollout moves the policy by {update:.3g} nats/token.",
            (history.evidence("kl_update", f"{update:.3g} (alarm above {self.config.warn:g})", 3, after=update),),
            (
                "pg_clipfrac",
                "score_mean",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        return update_causes(history)


def update_causes(history: History) -> list[Cause]:
    """Why an update is large."""
    settings, deviation = history.settings, history.latest("ratio_first_dev")
    epochs, spread = settings.num_epochs, history.ratio("adv_std")
    return [
        cause(
            "learning-rate-too-high",
            "The learning rate is too high for the size of the batch.",
            None,
            f"learning_rate {setting(history.learning_rates()[1])}, epsilon {setting(settings.epsilon)}.",
            "Halve learning_rate; a smaller epsilon limits each step further.",
        ),
        cause(
            "too-many-epochs",
            "The rollout is used too often.",
            None if epochs is None else epochs > 4,
            f"num_iterations {setting(epochs)}.",
            "Set num_iterations to 4 or fewer.",
        ),
        cause(
            "stale-rollout",
            "The policy that is trained is not the one that sampled.",
            None if deviation is None else deviation > 0.2,
            f"First-pass deviation of the ratio {setting(deviation)}.",
            "Look at X3: the ratio must start at 1.",
        ),
        cause(
            "advantage-scale",
            "The advantages grew.",
            None if spread is None else spread > 2,
            f"adv_std over that of the start {setting(spread)}.",
            "Set normalize_advantages=True and score_clip.",
        ),
    ]


@dataclass(frozen=True)
class SpikeConfig:
    """
    Thresholds.

    Args:
        ratio (`float`): Gradient over the median of the window; healthy public runs reach 9.6.
        sds (`float`): Robust standard deviations above it.
        spikes (`int`): That many in a window; single batches happen.
    """

    ratio: float = 10.0
    sds: float = 8.0
    spikes: int = 3


class GradientSpikes(Detector):
    """X15. Gradients that are now and then ten times the usual, for each network on its own."""

    mode = "X15"

    def __init__(self, settings: RunSettings, config: SpikeConfig | None = None) -> None:
        self.config = config or SpikeConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        return (
            Rule("policy", lambda history: self._spikes(history, "grad_norm"), ("grad_norm",)),
            Rule("critic", lambda history: self._spikes(history, "grad_norm_critic"), ("grad_norm_critic",)),
        )

    def _spikes(self, history: History, name: str) -> Verdict | None:
        values = history.values(name, history.windows.window)
        if values.size < 10:
            return None
        usual = median(values)
        if usual <= 0 or values.max() <= self.config.ratio * usual:
            return None
        sd = robust_sd(values)
        number = int(((values > self.config.ratio * usual) & (values > usual + self.config.sds * sd)).sum())
        if number < self.config.spikes:
            return None
        return Verdict(
            Severity.WARN,
            "gradient spikes",
            f"{number} gradients of the last {history.windows.window} rollouts were above {self.config.ratio:g} times the "
            f"median of {usual:.3g}; the largest was {values.max():.3g}.",
            (history.evidence(name, f"{number} spikes (alarm from {self.config.spikes})", history.windows.window),),
        )

    def causes(self, history: History) -> list[Cause]:
        limit = history.settings.max_grad_norm
        return [
            cause(
                "outlier-batches",
                "Single scores or ratios far from the others make the gradient.",
                None if not history.has("ratio_max") else (history.level("ratio_max") or 0.0) > 10,
                f"ratio_max {setting(history.level('ratio_max'))}, score_std {setting(history.level('score_std'))}.",
                "Set score_clip; lower num_iterations.",
            ),
            cause(
                "no-clipping",
                "The gradient is not clipped.",
                None if limit is None else not 0 < limit <= 10,
                f"max_grad_norm {setting(limit)}.",
                "Set max_grad_norm=1.0.",
            ),
        ]


@dataclass(frozen=True)
class ControllerConfig:
    """
    Thresholds.

    Args:
        rows (`int`): Rollouts without a change of beta while the KL is off its target; the controllers' own patience.
        off_target (`float`): Factor between KL and target that a controller should answer.
        swings (`int`): Turns of beta within two windows, each of at least
        swing (`float`): this factor, that are an oscillation.
    """

    rows: int = 20
    off_target: float = 1.5
    swings: int = 4
    swing: float = 2.0


class Controller(Detector):
    """X16. Beta stands at a bound, or swings."""

    mode = "X16"

    def __init__(self, settings: RunSettings, config: ControllerConfig | None = None) -> None:
        self.config = config or ControllerConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        target = () if self.settings.kl_target is not None else ("kl_target",)
        return (
            Rule("stuck", self._stuck, ("beta", "kl_ref_seq|kl_ref_tok", *target)),
            Rule("swings", self._swings, ("beta",)),
        )

    def _stuck(self, history: History) -> Verdict | None:
        name, unit, target = distance(history)
        kl, change = history.level(name), history.change(name)
        if target is None or kl is None or change is None or not still_beta(history, self.config.rows):
            return None
        above = kl > self.config.off_target * target
        # A controller waits while the KL comes by itself.
        comes = change.z < -1.28 if above else change.z > 1.28
        if comes or (not above and kl >= target / self.config.off_target):
            return None
        beta = history.latest("beta")
        return Verdict(
            Severity.WARN,
            "beta is stuck",
            f"Beta has been {beta:.3g} for {self.config.rows} rollouts while the KL is {kl:.3g} {unit}, its target "
            f"{target:.3g}.",
            (
                history.evidence("beta", f"no change in {self.config.rows} rollouts"),
                history.evidence(name, "off target"),
            ),
        )

    def _swings(self, history: History) -> Verdict | None:
        values = history.values("beta", 2 * history.windows.window)
        values = values[values > 0]
        turns = count_swings(np.log(values), float(np.log(self.config.swing))) if values.size else 0
        if turns < self.config.swings:
            return None
        return Verdict(
            Severity.WARN,
            "beta oscillates",
            f"Beta turned {turns} times within {2 * history.windows.window} rollouts, between {values.min():.3g} and "
            f"{values.max():.3g}.",
            (history.evidence("beta", f"{turns} turns by a factor of {self.config.swing:g} or more"),),
        )

    def causes(self, history: History) -> list[Cause]:
        settings, name = history.settings, distance(history).name
        noise = robust_sd(np.diff(history.values(name, history.windows.window)))
        level = history.level(name) or 0.0
        return [
            cause(
                "wrong-unit",
                "The target is meant in the other unit.",
                None,
                f"kl_target {setting(settings.kl_target)} per {setting(settings.kl_unit)}, mean length "
                f"{setting(history.level('len_mean'))}.",
                "Set kl_unit: 6 nats per sequence of 50 tokens are 0.12 nats per token.",
            ),
            causes.large_updates(history),
            cause(
                "rule",
                "The rule is too slow for the run, or too strong for the lag of the KL.",
                None if settings.kl_controller is None else settings.kl_controller in ("ziegler", "multiplicative"),
                f"kl_controller {setting(settings.kl_controller)}.",
                "Set kl_controller='log_pi'.",
            ),
            cause(
                "noisy-kl",
                "The KL of a rollout is too noisy to steer by.",
                noise > 0.5 * abs(level) if noise > 0 else None,
                f"KL changes by {noise:.3g} from rollout to rollout at a level of {level:.3g}.",
                "Enlarge the rollout.",
            ),
        ]


def count_swings(x: np.ndarray, least: float) -> int:
    """Turning points of a series between which it moves by at least `least`."""
    if x.max() - x.min() < 0.99 * least:
        return 0
    turns, direction, extreme = 0, 0, float(x[0])
    for value in x.tolist():
        if direction == 0:
            direction = (value > extreme + least) - (value < extreme - least)
            extreme = value if direction else extreme
        elif (value - extreme) * direction > 0:
            extreme = value
        elif (extreme - value) * direction >= least:
            turns, direction, extreme = turns + 1, -direction, value
    return turns
