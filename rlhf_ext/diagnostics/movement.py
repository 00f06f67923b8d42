"""M5: training does not move, and which of nine causes it is."""

from dataclasses import dataclass

import numpy as np

from .causes import cause, setting
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import distance, optimum_kl, still_beta

NO_GRADIENT = 1e-8
"""Norm below which a gradient is rounding."""
TINY_UPDATE = 1e-4
"""Nats per token per rollout; a working learning rate makes 1e-3 to 2e-2."""


@dataclass(frozen=True)
class MovementConfig:
    """
    Thresholds.

    Args:
        least_kl (`float`): Nats per sequence that a policy which learns anything passes; in the lab the noise of the
            updates alone keeps 0.3 where beta or a constant score leave nothing to learn.
        share_of_target (`float`): The same relative to the target.
        largest_se (`float`): Nats per sequence; two standard errors count as no movement only up to here, or a small
            rollout would never seem to move.
        score_sds (`float`): Change of the score over two windows, in standard deviations of one value, that is none: at 1
            an autocorrelated score without a trend passes in four tests of ten.
        ceiling (`float`): Share of the way from the start to the largest score that is the ceiling.
    """

    least_kl: float = 0.5
    share_of_target: float = 0.05
    largest_se: float = 0.5
    score_sds: float = 2.0
    ceiling: float = 0.95


class Movement(Detector):
    """M5. The KL stays at nothing and the score where it was: INFO after a window, WARN after two."""

    mode = "M5"

    def __init__(self, settings: RunSettings, config: MovementConfig | None = None) -> None:
        self.config = config or MovementConfig()
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        needs = ("score_mean",)
        return (
            Rule("still", self._still, (*needs, "kl_ref_seq|kl_ref_tok")),
            Rule("no-update", self._no_update, (*needs, "kl_update", "pg_clipfrac")),
        )

    def threshold(self, history: History) -> float:
        """Nats, in the unit watched, below which the policy has not moved."""
        name, _, target = distance(history)
        length = 1.0 if name == "kl_ref_seq" else history.level("len_mean") or 30.0
        se = min(2 * (history.level("kl_se") or 0.0), 2 * self.config.largest_se)
        return max(max(self.config.least_kl, se) / length, self.config.share_of_target * (target or 0.0))

    def _flat(self, history: History) -> bool:
        score = history.change("score_mean", 2 * history.windows.window)
        if score is None or abs(score.z) >= 2.58:
            return False
        return abs(score.after - score.before) <= max(self.config.score_sds * score.noise, 1e-12)

    def _severity(self, history: History) -> Severity:
        return Severity.WARN if history.settled >= 2 * history.windows.window else Severity.INFO

    def _still(self, history: History) -> Verdict | None:
        name, unit, _ = distance(history)
        kl, least = history.level(name, history.windows.window), self.threshold(history)
        if kl is None or abs(kl) >= least or not self._flat(history):
            return None
        return Verdict(
            self._severity(history),
            "training does not move",
            f"After {history.rows} rollouts the policy is {kl:.3g} {unit} from the reference (nothing below {least:.2g}), "
            "and the score is where it was.",
            (history.evidence(name, f"KL = {kl:.3g} (alarm below {least:.3g})", history.windows.window, after=kl),),
            (
                "score_mean",
                "kl_update",
                "grad_norm",
            ),
        )

    def _no_update(self, history: History) -> Verdict | None:
        update, clipped = history.level("kl_update", history.windows.window), history.level("pg_clipfrac")
        if update is None or abs(update) >= TINY_UPDATE / 10 or clipped != 0 or not self._flat(history):
            return None
        if history.has("kl_ref_seq|kl_ref_tok"):
            return None
        return Verdict(
            self._severity(history),
            "training does not move",
            f"A rollout changes the policy by {update:.2g} nats/token, clips nothing, and the score is where it was.",
            (history.evidence("kl_update", f"kl_update = {update:.2g} (alarm below {TINY_UPDATE / 10:g})"),),
        )

    def causes(self, history: History) -> list[Cause]:
        # A controller at its bound makes beta too high: the more special cause stands first.
        return [
            _controller(history),
            _beta_too_high(history, self.threshold(history)),
            _learning_rate(history),
            _frozen(history),
            _constant_score(history),
            _no_reference(history),
            _clipped_reward(history),
            _ceiling(history, self.config.ceiling),
            _noise(history),
        ]


def _gradient(history: History) -> float | None:
    return history.level("grad_norm")


def _beta_too_high(history: History, least: float) -> Cause:
    optimum, beta, spread = optimum_kl(history), history.level("beta"), history.level("score_std")
    dead = spread is not None and spread < 1e-6
    return cause(
        "beta-too-high",
        "The KL penalty outweighs the scores: what they pay for is no distance at all.",
        False if dead else None if optimum is None else optimum < least,
        f"beta {setting(beta)}, score_std {setting(spread)}: the optimum of score - beta * KL lies at "
        f"{setting(optimum)} {distance(history).unit}.",
        "Divide beta by 2 to 10, or raise kl_target.",
    )


def _learning_rate(history: History) -> Cause:
    rate, update, gradient = history.level("lr"), history.level("kl_update"), _gradient(history)
    spread = history.level("score_std")
    alive = (gradient is None or gradient > NO_GRADIENT) and (spread is None or spread > 1e-6)
    check = None
    if rate is not None and rate < 1e-9:
        check = True
    elif update is not None:
        # An update of exactly 0 is none at all.
        check = 0 < abs(update) < TINY_UPDATE and alive
    return cause(
        "learning-rate-too-low",
        "The learning rate is too low, or its schedule stands at 0.",
        check,
        f"learning rate {setting(rate)}, kl_update {setting(update)} nats/token (tiny below {TINY_UPDATE:g}), gradient "
        f"{setting(gradient)}; critic_warmup_rollouts {setting(history.settings.critic_warmup_rollouts)}.",
        "Multiply learning_rate by 3 to 10; look at the schedule, its warm-up and critic_warmup_rollouts.",
    )


def _frozen(history: History) -> Cause:
    gradient, spread = _gradient(history), history.level("score_std")
    update, rate = history.level("kl_update", history.windows.window), history.level("lr")
    # The norm that is logged may be that of the critic, which learns all the same.
    frozen = update == 0 and rate is not None and rate > 1e-9
    known = gradient is not None or update is not None
    dead = frozen or (gradient is not None and gradient <= NO_GRADIENT)
    check = dead and (spread is None or spread > 1e-6) if known else None
    return cause(
        "no-gradient",
        "No gradient reaches the policy: its parameters are frozen, the adapter is not trainable, or the loss is detached.",
        check,
        f"grad_norm {setting(gradient)}, kl_update {setting(update)} nats/token (exactly 0 if nothing is trained).",
        "Call print_trainable_parameters(); look whether the adapter is active and requires_grad is set.",
    )


def _constant_score(history: History) -> Cause:
    spread = history.level("score_std")
    return cause(
        "constant-score",
        "All completions get the same score, so that there is nothing to learn.",
        None if spread is None else spread <= 1e-6,
        f"score_std {setting(spread)}.",
        "Score a good and a bad completion by hand; look at how the reward function parses its input.",
    )


def _no_reference(history: History) -> Cause:
    kl, update = history.values(distance(history).name, history.windows.window), history.level("kl_update")
    zero = bool(kl.size) and not np.any(kl)
    return cause(
        "reference-is-the-policy",
        "The KL is exactly 0 although the policy moves: the reference is the policy itself.",
        None if update is None else zero and abs(update) > TINY_UPDATE,
        f"KL exactly 0 in all rollouts of the window: {'yes' if zero else 'no'}; kl_update {setting(update)}.",
        "Pass a frozen copy as ref_model; with an adapter, look whether it is off where the reference is computed.",
    )


def _clipped_reward(history: History) -> Cause:
    limit, mean, spread = history.settings.score_clip, history.level("score_mean"), history.level("score_std")
    known = limit is not None and mean is not None and spread is not None
    return cause(
        "reward-clipped-away",
        "Nearly all scores lie at the clip.",
        abs(mean) > 0.9 * limit and spread < 0.2 * limit if known else None,  # type: ignore[arg-type, operator]
        f"score_clip {setting(limit)}, mean {setting(mean)}, score_std {setting(spread)}.",
        "Raise score_clip, or set normalize_scores.",
    )


def _controller(history: History) -> Cause:
    beta, moved = history.latest("beta"), history.beta_range
    known = beta is not None and moved is not None
    stuck = known and still_beta(history, max(5, history.windows.window // 4)) and beta >= moved[1]  # type: ignore
    return cause(
        "controller-at-upper-bound",
        "The controller holds beta at its upper bound.",
        bool(stuck) if known else None,
        f"beta {setting(beta)}, largest so far {setting(moved[1] if moved else None)}.",
        "Raise kl_target (mind kl_unit), or start from beta='auto'.",
    )


def _ceiling(history: History, share: float) -> Cause:
    mean, top = history.level("score_mean"), history.level("score_max")
    low, spread = history.reference("score_mean"), history.level("score_std")
    known = mean is not None and top is not None and spread is not None and spread > 1e-6
    near = known and top - mean < max((1 - share) * abs(top), 0.5 * spread)  # type: ignore[operator, arg-type]
    return cause(
        "score-at-ceiling",
        "The policy already gets nearly the best score there is.",
        bool(near) if known else None,
        f"mean {setting(mean)}, largest {setting(top)}, mean at the start {setting(low.median if low else None)}.",
        "Take harder prompts, or a reward that still tells good from better.",
    )


def _noise(history: History) -> Cause:
    update, explained = history.level("kl_update"), history.level("explained_var")
    return cause(
        "updates-cancel",
        "The policy moves with every rollout but in no direction: the advantages are noise.",
        None if update is None else abs(update) >= 10 * TINY_UPDATE,
        f"kl_update {setting(update)} nats/token, explained variance {setting(explained)}.",
        "Enlarge the rollout, lower num_iterations, warm the critic up (critic_warmup_rollouts), check that scores follow "
        "the completions.",
    )
