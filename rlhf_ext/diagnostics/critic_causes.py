"""Causes of a bad critic, each checked against the log."""

import math

from .causes import cause, setting
from .critic_signals import FASTEST, CriticConfig, error_of_constant, relative_loss
from .finding import Cause
from .history import History
from .statistics import noise_sd

COLD = 0.05
"""Explained variance of a critic that still knows nothing; one that starts as the reward model has 0.1 and more."""


def critic_causes(history: History) -> list[Cause]:
    """Causes of a bad critic in the order in which to try their remedies."""
    settings = history.settings
    return [
        _fast_critic(history),
        _scale(history),
        _unclipped_gradient(history),
        _cold_critic(history),
        _slow_critic(history),
        _reuse(history),
        _tight_clip(history) if (settings.value_clip_range or math.inf) < math.inf else _no_clip(),
    ]


def _fast_critic(history: History) -> Cause:
    own, policy = history.learning_rates()
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
        "The critic does not know the returns yet, and the policy follows it from the first rollout.",
        False if warmup or never is False else None if warmup is None else never,
        f"critic_warmup_rollouts {setting(warmup)}; explained variance at first {setting(first)}.",
        "Set critic_warmup_rollouts=10, or start the critic as the reward model.",
    )


def _slow_critic(history: History) -> Cause:
    """The values lag behind the returns: wrong by more than a constant would be, and steadily so."""
    config, (own, policy) = CriticConfig(), history.learning_rates()
    error, limit = error_of_constant(history, config.rows), config.error(history.settings)
    losses = relative_loss(history, history.windows.window // 2)
    # One that overshoots is wrong now this way and now that, and its loss swings.
    steady = losses.size >= 5 and noise_sd(losses) < config.swing(history.settings)
    known = error is not None and own is not None and policy is not None and policy > 0
    return cause(
        "critic-too-slow",
        "The returns moved, or the critic started far from them, and it does not follow fast enough.",
        error > limit and steady and own < FASTEST * policy / 2 if known else None,  # type: ignore[operator]
        f"Squared error {setting(error)} of a constant's (wrong above {limit:.2f}), "
        f"{'steady' if steady else 'swinging or unknown'}; critic's rate {setting(own)}, policy's {setting(policy)} "
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
