"""M1: the KL to the reference keeps rising."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import causes
from .detector import Detector, Rule, Verdict
from .finding import Cause, Severity
from .history import History
from .record import RunSettings
from .signals import (
    decline,
    describe,
    distance,
    first_spread,
    held_out_falls,
    quality_improves,
    score_gains,
    score_improves,
    still_beta,
)
from .statistics import PageHinkley, median, robust_sd, robust_z

START = 3
"""First rollouts, whose mean score is that of the reference as long as the policy is near it."""


@dataclass(frozen=True)
class DriftConfig:
    """
    Thresholds.

    Args:
        over_target (`float`): KL over target that a controller should not leave standing; its own overshoot peaks at 1.5
            in the closed-loop simulations (docs/kl_control.md). Below, a rise needs no gain.
        far_over_target (`float`): From here the target means nothing any more.
        trend (`float`): Block-median z of a rise, one-sided 0.5 %.
        growth (`float`): Rise within a window; below 25 % two of three healthy public logs raise an alarm.
        least_kl (`float`): Nats per sequence below which there is no drift: the policy still writes the reference's text.
        score_fall (`float`): Fall of the score from its best, in standard deviations of one rollout. Autocorrelated noise
            alone reaches it often, so that it must also be
        score_share (`float`): that many spreads of the scores within a rollout, three times the noise of a mean of 64.
        jump_delta, jump_threshold (`float`): Page-Hinkley on the step of sqrt(KL), in standard deviations of the reference
            window: half a deviation is tolerated for ever; an outlier takes back with its second step what it added.
        jump_growth (`float`): Factor within a window that makes the step matter.
        paid_kl (`float`): Nats per sequence from which a gain may be asked for.
        least_return (`float`): Gain of the score over `sigma * sqrt(2 KL)`, the largest that a Gaussian score of standard
            deviation sigma can have at that KL. The lab's healthy runs have 0.1 to 0.6 of it from 2 nats on, a healthy
            public one 0.1; a score that is noise less than 0.05. Twice as much closes the finding.
    """

    over_target: float = 1.5
    far_over_target: float = 3.0
    trend: float = 2.58
    growth: float = 1.25
    least_kl: float = 1.0
    score_fall: float = 2.0
    score_share: float = 0.4
    jump_delta: float = 0.5
    jump_threshold: float = 10.0
    jump_growth: float = 2.0
    paid_kl: float = 2.0
    least_return: float = 0.05


class Drift(Detector):
    """
    M1. Above its target, or rising without gain where there is none, or jumping. A KL that rises to its target, or while
    the score rises, is what PPO does.
    """

    mode = "M1"

    def __init__(self, settings: RunSettings, config: DriftConfig | None = None) -> None:
        self.config = config = config or DriftConfig()
        self._jump = PageHinkley(config.jump_delta, config.jump_threshold)
        self._steps: list[float] = []
        self._last: float | None = None
        self._scale: tuple[float, float] | None = None
        self._start: list[float] = []
        super().__init__(settings)

    def list_rules(self) -> tuple[Rule, ...]:
        needs = ("kl_ref_seq|kl_ref_tok",)
        return (
            Rule("target", self._above_target, needs, windows=0.25),
            Rule("no-return", self._without_return, (*needs, "score_mean", "score_std"), windows=0.0, on="score_mean"),
            Rule("no-gain", self._without_gain, (*needs, "score_mean")),
            Rule("loss", self._with_loss, (*needs, "score_mean"), on="score_mean"),
            Rule("jump", self._jumped, needs),
        )

    def _above_target(self, history: History) -> Verdict | None:
        name, unit, target = distance(history)
        kl, change = history.level(name), history.change(name, history.windows.window // 2)
        least = self.config.least_kl if name == "kl_ref_seq" else 0.0
        if target is None or kl is None or kl <= max(self.config.over_target * target, least):
            return None
        if change is not None and change.z < -1.28:
            return None
        far = kl > self.config.far_over_target * target or still_beta(history, history.windows.window // 4)
        severity = Severity.CRITICAL if far and held_out_falls(history) else Severity.WARN
        statistic = f"KL / target = {kl / target:.2g} (alarm above {self.config.over_target:g})"
        return Verdict(
            severity,
            "KL far above its target",
            f"The KL to the reference is {kl:.3g} {unit}, {kl / target:.2g} times its target of {target:.3g}, and does "
            "not come down.",
            (history.evidence(name, statistic, before=target),),
            (
                "score_mean",
                "kl_ref_tok",
                "len_mean",
            ),
        )

    def _without_return(self, history: History) -> Verdict | None:
        """
        By KL nats a score of standard deviation sigma can gain `sigma * sqrt(2 KL)` (Gaussian: by Donsker and Varadhan
        `E_p[s] - E_q[s] <= inf_t (KL + t^2 sigma^2 / 2) / t`); here next to nothing of it was gained. Needs no window.
        """
        name, _, target = distance(history)
        seen, gain = history.level(name), self._return(history)
        if gain is None or seen is None or (target is not None and seen <= self.config.over_target * target):
            return None
        # What is open closes only with a clear return.
        least = self.config.least_return * (1 if self.finding is None else 2)
        if gain > least or quality_improves(history):
            return None
        start, statistic = (
            sum(self._start) / len(self._start),
            f"{gain:.2f} of the gain possible (alarm up to {least:g})",
        )
        return Verdict(
            Severity.WARN,
            "drift without return",
            f"The policy is {history.level('kl_ref_seq'):.3g} nats/sequence from the reference, but the score, which could "
            f"have gained by that, went from {start:.3g} to {history.level('score_mean'):.3g}.",
            (
                history.evidence("kl_ref_seq", statistic, before=0.0),
                history.evidence("score_mean", statistic, before=start),
            ),
            ("kl_update", "len_mean"),
        )

    def _return(self, history: History) -> float | None:
        """Gain of the score since the start over the largest possible at this KL; `None` nearer than `paid_kl`."""
        kl, score, spread = history.level("kl_ref_seq"), history.level("score_mean"), first_spread(history)
        if kl is None or score is None or not spread or not self._start or kl < self.config.paid_kl:
            return None
        return (score - sum(self._start) / len(self._start)) / (spread * math.sqrt(2 * kl))

    def _without_gain(self, history: History) -> Verdict | None:
        name, unit, target = distance(history)
        change = history.change(name)
        if change is None or (target is not None and change.after <= self.config.over_target * target):
            return None
        grown = change.before <= 0 or change.after > self.config.growth * change.before
        least = self.config.least_kl if name == "kl_ref_seq" else 0.0
        if not grown or change.after < least or change.z <= self.config.trend:
            return None
        if quality_improves(history) or score_gains(history):
            return None
        statistic = f"trend z = {change.z:.2f} (alarm above {self.config.trend:g})"
        return Verdict(
            Severity.WARN,
            "drift without gain",
            f"Within {history.windows.window} rollouts the KL to the reference went {describe(change, unit)}, and the "
            "score did not rise.",
            (history.evidence(name, statistic, history.windows.window, change.before, change.after),),
            (
                "score_mean",
                "kl_ref_tok",
                "len_mean",
            ),
        )

    def _with_loss(self, history: History) -> Verdict | None:
        """The score falls from its best, and the policy is further away than it was then."""
        name, unit, target = distance(history)
        spread, kl = history.level("score_std"), history.level(name)
        if kl is None or (target is not None and kl <= self.config.over_target * target):
            return None
        fall = decline(history, "score_mean")
        if fall is None or quality_improves(history):
            return None
        steps, values = history.logged(name, 2 * history.windows.window)[1:]
        earlier = values[steps <= fall.best_step]
        least = self.config.least_kl if name == "kl_ref_seq" else 0.0
        if not earlier.size or kl < max(least, self.config.growth * median(earlier[-5:])):
            return None
        if fall.in_noise <= self.config.score_fall or fall.best - fall.now <= self.config.score_share * (
            spread or 0.0
        ):
            return None
        return Verdict(
            Severity.CRITICAL if held_out_falls(history) else Severity.WARN,
            "drift with loss",
            f"The score fell from its best of {fall.best:.3g} at step {fall.best_step} to {fall.now:.3g}, and the KL to "
            f"the reference rose to {kl:.3g} {unit}.",
            (history.evidence("score_mean", f"{fall.in_noise:.1f} sd below its best", None, fall.best, fall.now),),
            (name, "kl_update", "len_mean"),
        )

    def note(self, history: History) -> None:
        """
        Steps of the distance sqrt(KL), which grows at a steady pace where the KL itself accelerates, standardised by the
        first W / 2 of them.
        """
        name = distance(history).name
        kl = history.now(name)
        score, seq = history.now("score_mean"), history.now("kl_ref_seq")
        if score is not None and seq is not None and history.rows <= START and abs(seq) < self.config.least_kl:
            self._start.append(score)
        if kl is None or history.settled <= 0:
            return
        here, last = max(kl, 0.0) ** 0.5, self._last
        self._last = here
        if last is None:
            return
        step = here - last
        if self._scale is None:
            self._steps.append(step)
            if len(self._steps) >= history.windows.reference:
                self._scale, self._steps = self._standard(self._steps), []
            return
        self._jump.update(robust_z(step, *self._scale, floor=0.01))

    @staticmethod
    def _standard(steps: list[float]) -> tuple[float, float]:
        values = np.array(steps)
        return median(values), robust_sd(values)

    def _jumped(self, history: History) -> Verdict | None:
        if self._jump.excess <= self._jump.threshold:
            return None
        name, unit, target = distance(history)
        window = history.windows.window
        values = history.values(name, window)
        if values.size < window:
            return None
        before, now = median(values[: -(window // 4)]), median(values[-5:])
        least = self.config.least_kl if name == "kl_ref_seq" else 0.0
        if now < self.config.jump_growth * before or now - before < least or (target is not None and now <= target):
            return None
        if score_improves(history, window // 2):
            return None
        statistic = f"Page-Hinkley {self._jump.excess:.1f} sd (alarm above {self._jump.threshold:g})"
        return Verdict(
            Severity.WARN,
            "KL jump",
            f"The KL to the reference jumped from {before:.3g} to {now:.3g} {unit} within {window} rollouts.",
            (history.evidence(name, statistic, 5, before, now),),
            (
                "score_mean",
                "kl_ref_tok",
                "len_mean",
            ),
        )

    def causes(self, history: History) -> list[Cause]:
        return [
            causes.weak_penalty(history),
            self._blind_reward(history),
            causes.large_updates(history),
            causes.score_scale(history),
            causes.longer_answers(history),
            causes.stuck_controller(history),
            causes.wrong_reference(history),
            causes.unscaled_temperature(history),
        ]

    def _blind_reward(self, history: History) -> Cause:
        gain = self._return(history)
        return causes.cause(
            "reward-blind",
            "The score does not depend on what the policy changes: noise, another prompt's answer, a default.",
            None if gain is None else gain <= self.config.least_return,
            "Compare the score with its start."
            if gain is None
            else f"The score gained {gain:.2f} of what it could at this KL (blind up to {self.config.least_return:g}).",
            "Score some completions twice, and good and bad ones by hand; train on when the reward tells them apart.",
        )

    def state_dict(self) -> dict[str, Any]:
        own = {"jump": self._jump.state_dict(), "steps": list(self._steps), "last": self._last}
        own["start"] = list(self._start)
        return super().state_dict() | own | {"scale": self._scale and list(self._scale)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._jump.load_state_dict(state["jump"])
        self._steps, self._last, self._start = list(state["steps"]), state["last"], list(state["start"])
        self._scale = state["scale"] and (state["scale"][0], state["scale"][1])
