"""Causes of the policy's failures, each checked against the log. A check is `None` where nothing in the log tells."""

from .finding import Cause, Check
from .history import History
from .signals import distance, optimum_kl, still_beta

LARGE_UPDATE = 0.02
"""Nats per token per rollout; approx_kl is usually below (37 details of PPO)."""
MANY_CLIPPED = 0.2
"""Share of clipped ratios; below 0.1 in healthy RLHF."""
SPREAD_FACTOR = 2.0
"""Growth of the spread of the scores that multiplies the KL at the optimum by four (KL = sigma^2 / 2 beta^2)."""
LENGTH_FACTOR = 1.3
"""Growth of the length that explains a KL per sequence which does not grow per token."""


def cause(name: str, why: str, check: bool | None, how: str, remedy: str) -> Cause:
    """A cause whose check held (`True`), did not (`False`), or has no data (`None`)."""
    words: dict[bool | None, Check] = {True: "confirmed", False: "refuted", None: "open"}
    return Cause(name, why, words[check], how, remedy)


def setting(value: object) -> str:
    """A setting in words."""
    return "unknown" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def weak_penalty(history: History) -> Cause:
    """At this beta the score pays for more KL than is wanted."""
    name, unit, target = distance(history)
    optimum, kl, beta = optimum_kl(history), history.level(name), history.level("beta")
    check, told = (
        None,
        "Compare score_std^2 / (2 beta^2), the KL at the optimum for Gaussian scores, with the KL wanted.",
    )
    if optimum is not None and kl is not None:
        wanted = kl if target is None else 1.5 * target
        check = optimum > wanted
        told = f"beta {setting(beta)} puts the optimum at {optimum:.3g} {unit}; wanted are {wanted:.3g} at most."
    return cause(
        "beta-too-low",
        "The KL penalty is small against the spread of the scores, so that leaving the reference pays.",
        check,
        told,
        "Double beta, or set a lower kl_target with kl_controller='log_pi'.",
    )


def large_updates(history: History) -> Cause:
    """The policy moves far in each rollout."""
    settings, kl, clipped = history.settings, history.level("kl_update"), history.level("pg_clipfrac")
    signs = [kl > LARGE_UPDATE] if kl is not None else []
    signs += [clipped > MANY_CLIPPED] if clipped is not None else []
    told = ", ".join(
        f"{name} {value:.3g} (large above {limit})"
        for name, value, limit in (("kl_update", kl, LARGE_UPDATE), ("pg_clipfrac", clipped, MANY_CLIPPED))
        if value is not None
    )
    return cause(
        "updates-too-large",
        "The learning rate or the number of epochs moves the policy too far on each rollout.",
        any(signs) if signs else None,
        f"{told or 'Log kl_update and pg_clipfrac'}; learning_rate {setting(history.learning_rates()[1])}, "
        f"num_iterations {setting(settings.num_epochs)}.",
        "Halve learning_rate, or take one off num_iterations; a smaller epsilon limits each step further.",
    )


def score_scale(history: History) -> Cause:
    """The spread of the scores grew."""
    ratio = history.ratio("score_std")
    return cause(
        "reward-scale",
        "The spread of the scores grew; at the same beta the KL at the optimum grows with its square.",
        None if ratio is None else ratio > SPREAD_FACTOR,
        "Compare score_std with its start."
        if ratio is None
        else f"score_std is {ratio:.2g} times that of the start (grown above {SPREAD_FACTOR:g}).",
        "Set normalize_scores, bound the scores with score_clip, and let kl_controller='log_pi' find beta.",
    )


def longer_answers(history: History) -> Cause:
    """KL per sequence grows because the sequence does."""
    length, per_token = history.change("len_mean"), history.change("kl_ref_tok")
    grown = None if length is None else length.growth
    steady = None if per_token is None or per_token.growth is None else per_token.growth < 1.25
    known = grown is not None and steady is not None
    return cause(
        "length-growth",
        "The completions became longer; the KL per token did not grow.",
        (grown > LENGTH_FACTOR and steady) if known else None,  # type: ignore[operator]
        f"Length {grown:.2g} times that of a window ago, KL per token {per_token.growth:.2g} times."  # type: ignore[union-attr]
        if known
        else "Compare len_mean and kl_ref_tok over the window.",
        "Set kl_unit='token', or lower max_completion_length.",
    )


def stuck_controller(history: History) -> Cause:
    """Beta has stopped at a bound."""
    kind, rows = history.settings.kl_controller, max(5, history.windows.window // 4)
    stuck = None if kind is None or not history.has("beta") else kind != "fixed" and still_beta(history, rows)
    beta = history.latest("beta")
    return cause(
        "controller-stuck",
        "The controller cannot move beta any further, or moves it too slowly to matter within the run.",
        stuck,
        f"kl_controller {setting(kind)}, beta {setting(beta)}"
        + (f", unchanged for {rows} rollouts." if stuck else "."),
        "Start from beta='auto'; use kl_controller='log_pi', whose speed fits the run ('ziegler' needs 35000 episodes "
        "to double beta).",
    )


def wrong_reference(history: History) -> Cause:
    """The reference is not the model the run started from."""
    start = history.logged("kl_ref_seq", 2 * history.windows.window)
    first = float(start[2][0]) if start.size and start[0][0] == 0 else None
    return cause(
        "wrong-reference",
        "The reference is not the model that the policy started from, or it is trained too.",
        None if first is None else abs(first) > 1.0,
        "The KL of the first rollout must be 0; look at it."
        if first is None
        else f"KL of the first rollout: {first:.3g} nats.",
        "Pass the starting model as ref_model, and look whether the adapter is off where the reference is computed.",
    )


def unscaled_temperature(history: History) -> Cause:
    """Log-probabilities ignore the sampling temperature."""
    temperature, deviation = history.settings.temperature, history.level("ratio_first_dev")
    check = False if temperature == 1.0 else None if deviation is None else deviation > 0.2
    return cause(
        "temperature",
        "Sampling has another temperature than the log-probabilities that are compared.",
        check,
        f"temperature {setting(temperature)}; first-pass deviation of the ratio {setting(deviation)}.",
        "Set temperature=1.0, or divide the logits by it wherever log-probabilities are computed.",
    )


def no_entropy_bonus(history: History) -> Cause:
    """Nothing holds the entropy up."""
    coef = history.settings.entropy_coef
    return cause(
        "no-entropy-bonus",
        "Nothing in the objective holds the entropy up.",
        None if coef is None else coef == 0,
        f"entropy_coef {setting(coef)}.",
        "Set entropy_coef to 0.001, then 0.01. If the reference is itself of low entropy, the KL target pulls the other "
        "way.",
    )


def cold_sampling(history: History) -> Cause:
    """The sampler narrows what the policy sees of itself."""
    temperature = history.settings.temperature
    return cause(
        "cold-sampling",
        "A temperature below 1 samples little besides the mode, which training then sharpens.",
        None if temperature is None else temperature < 0.9,
        f"temperature {setting(temperature)}.",
        "Set temperature=1.0.",
    )


def large_entropy_bonus(history: History) -> Cause:
    """The entropy bonus outweighs the score."""
    coef, entropy, spread = history.settings.entropy_coef, history.level("entropy_tok"), history.level("score_std")
    known = coef is not None and entropy is not None and spread is not None
    return cause(
        "entropy-bonus-too-large",
        "The entropy bonus outweighs the score.",
        coef * entropy > 0.1 * spread if known else None,  # type: ignore[operator]
        f"entropy_coef {setting(coef)}, entropy {setting(entropy)} nats/token, score_std {setting(spread)}.",
        "Divide entropy_coef by 10, or set it to 0.",
    )


def peaked_reward(history: History) -> Cause:
    """One kind of answer takes all the reward."""
    spread, mean = history.ratio("score_std"), history.change("score_mean", 2 * history.windows.window)
    check = None if spread is None or mean is None else spread < 0.5 and mean.after > mean.before
    return cause(
        "reward-peaked",
        "One phrase or format takes the whole reward.",
        check,
        "Read the samples: do they share a phrase?"
        if check is None
        else f"score_std is {spread:.2g} times that of the start while the mean went {mean.after - mean.before:+.3g}.",  # type: ignore[union-attr]
        "Read the samples kept with this finding; mend the reward, bound it with score_clip, double beta.",
    )
