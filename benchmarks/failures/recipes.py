"""What is done to a run. Says nothing about what comes of it: labels are read off the oracle."""

from dataclasses import dataclass, field
from typing import Any

ROLLOUTS = 100
TUNE_SEEDS = 10
SEEDS = 20
# A healthy run, confirmed by the oracle.
BASE: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 28,
    "learning_rate": 6e-4,
    "critic_learning_rate": 3e-4,
    "lr_scheduler_type": "constant",
    "kl_target": 4.0,
    "kl_unit": "sequence",
    "epsilon": 0.2,
}
FREE: dict[str, Any] = {"kl_target": None, "kl_unit": None}
# A penalty that does not hold the policy.
LOOSE: dict[str, Any] = {**FREE, "beta": 0.002}
# The same at a third of the learning rate, so that a run lives to see what comes of it.
SLOW: dict[str, Any] = {**LOOSE, "learning_rate": 2e-4}
# The same at a rate that takes the policy far.
FAST: dict[str, Any] = {**LOOSE, "learning_rate": 1e-3}

# The second world's: as few tokens as a pretrained model can show every failure with on one core.
DEMO_BASE: dict[str, Any] = {
    "per_device_train_batch_size": 6,
    "steps_per_generation": 2,
    "num_iterations": 1,
    "max_completion_length": 8,
    "learning_rate": 7e-4,
    "critic_learning_rate": 1e-4,
    "critic": "head",
    "lr_scheduler_type": "constant",
    "kl_target": 4.0,
    "kl_unit": "sequence",
    "epsilon": 0.2,
}
BASES = {"small": BASE, "demo": DEMO_BASE}


@dataclass(frozen=True)
class Recipe:
    """
    Args:
        intent (`str`): What it was written to bring about: `"healthy"`, `"hard-negative"` or a mode. No label reads it.
        reward (`str`): Kind of reward model, or name of a Python reward function.
        settings (`dict`): What differs from `BASE`.
        fault (`str`, *optional*): Name in `faults.FAULTS`.
        rollouts (`int`): Length of the run.
        num_subjects (`int`): Subjects that a request asks for.
        causes (`tuple[str]`): Causes that would be right to name, where the recipe leaves no doubt.
        lint (`tuple[str]`): What the check of the settings must warn of before the run; of nothing else.
        world (`str`): World that it runs in, a key of `BASES`.
    """

    intent: str
    reward: str = "good"
    settings: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    rollouts: int = ROLLOUTS
    num_subjects: int = 2
    causes: tuple[str, ...] = ()
    lint: tuple[str, ...] = ()
    world: str = "small"


RECIPES: dict[str, Recipe] = {
    "base": Recipe("healthy"),
    "base-gold": Recipe("healthy", "gold"),
    "base-token-penalty": Recipe("healthy", settings={"kl_placement": "token"}),
    "base-low-rate": Recipe("healthy", settings={"learning_rate": 3e-4}),
    "far-target": Recipe("hard-negative", "gold", {"kl_target": 12.0}),
    "length-growth": Recipe("hard-negative", "gold", num_subjects=3),
    "critic-warmup": Recipe("hard-negative", settings={"critic_warmup_rollouts": 12}),
    "rate-restart": Recipe(
        "hard-negative",
        settings={"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    ),
    "curriculum": Recipe("hard-negative", "gold", fault="curriculum"),
    # A run that is resumed is the run that was not, so it must not be another recipe's.
    "resume": Recipe("hard-negative", "gold", {"kl_placement": "token"}, fault="resume"),
    "short": Recipe("hard-negative", rollouts=50),
    "small-batch": Recipe("hard-negative", settings={"per_device_train_batch_size": 8}),
    "drift-shuffled": Recipe("M1", "gold", LOOSE, fault="shuffled_scores"),
    "drift-noisy": Recipe("M1", "gold", FAST, fault="noisy_scores"),
    "drift-stuck": Recipe("M1", "gold", FAST, fault="stuck_scores", causes=("constant-score",)),
    "drift-scale": Recipe(
        "M1", "noisy", {**FREE, "beta": 0.01}, fault="scale", causes=("reward-scale", "reward-changed", "beta-too-low")
    ),
    "drift-noise": Recipe("M1", "noise", FAST),
    "drift-rate": Recipe(
        "M1",
        "gold",
        {**LOOSE, "learning_rate": 2.2e-3, "num_iterations": 4},
        causes=("updates-too-large", "learning-rate-too-high", "too-many-epochs", "beta-too-low"),
    ),
    "collapse-phrase": Recipe(
        "M2", "phrase", {**LOOSE, "learning_rate": 3e-5}, causes=("reward-peaked", "beta-too-low")
    ),
    "collapse-brevity": Recipe(
        "M2", "brevity", {**LOOSE, "learning_rate": 3e-5}, causes=("reward-peaked", "beta-too-low")
    ),
    "collapse-rate": Recipe(
        "M2",
        "gold",
        {**LOOSE, "learning_rate": 3e-3},
        causes=("updates-too-large", "learning-rate-too-high", "beta-too-low"),
    ),
    "hack-keywords": Recipe("M3", "keywords", SLOW, causes=("beta-too-low",)),
    "hack-emphasis": Recipe("M3", "emphasis", SLOW, causes=("beta-too-low",)),
    "hack-noisy-model": Recipe("M3", "noisy", LOOSE, causes=("beta-too-low", "reward-model-out-of-distribution")),
    "hack-wordy-model": Recipe("M3", "wordy", LOOSE, causes=("beta-too-low", "reward-model-out-of-distribution")),
    "hack-long-model": Recipe(
        "M3", "long", LOOSE, causes=("length-bias", "beta-too-low", "reward-model-out-of-distribution")
    ),
    "critic-rate": Recipe(
        "M4",
        "gold",
        {"critic_learning_rate": 0.03, "value_clip_range": None, "num_iterations": 4},
        causes=("critic-learning-rate", "value-clip-off", "too-many-epochs"),
        lint=("critic-learning-rate",),
    ),
    "critic-scale": Recipe("M4", "gold", fault="scale", causes=("reward-scale", "reward-changed")),
    "critic-cold": Recipe(
        "M4",
        "good",
        {"critic_learning_rate": 1e-7},
        fault="random_critic",
        causes=("critic-not-warmed-up", "critic-too-slow"),
        lint=("critic-learning-rate-low",),
    ),
    "critic-slow": Recipe(
        "M4",
        "gold",
        {"critic_learning_rate": 1e-5},
        fault="random_critic",
        causes=("critic-not-warmed-up", "critic-too-slow"),
        lint=("critic-learning-rate-low",),
    ),
    "critic-bonus": Recipe("M4", "gold", fault="bonus", causes=("critic-too-slow", "reward-changed")),
    "still-beta": Recipe("M5", "good", {**FREE, "beta": 30.0}, causes=("beta-too-high",)),
    "still-target": Recipe(
        "M5",
        "good",
        {"kl_target": 0.02},
        causes=("beta-too-high", "controller-at-upper-bound"),
        lint=("kl-target-near",),
    ),
    "still-rate": Recipe(
        "M5", "good", {"learning_rate": 6e-7}, causes=("learning-rate-too-low",), lint=("critic-learning-rate",)
    ),
    "still-constant": Recipe("M5", "constant", {**FREE, "beta": 0.1}, causes=("constant-score",)),
    "still-frozen": Recipe("M5", "good", fault="freeze_policy", causes=("frozen-parameters", "no-gradient")),
    "bug-nan": Recipe("X1", "gold", fault="nan_scores", causes=("reward-not-finite",)),
    "bug-sampling": Recipe(
        "X2",
        "gold",
        {"generation_kwargs": {"temperature": 1.5}, "allow_mismatched_sampling": True},
        causes=("sampler-settings", "temperature"),
        lint=("sampler",),
    ),
    "bug-min-tokens": Recipe(
        "X2",
        "gold",
        {"generation_kwargs": {"min_new_tokens": 22}, "allow_mismatched_sampling": True},
        causes=("sampler-settings",),
        lint=("sampler",),
    ),
    "bug-dropout": Recipe(
        "X3", "good", {"disable_dropout": False}, fault="dropout", causes=("dropout",), lint=("dropout",)
    ),
    "bug-eos": Recipe(
        "X10",
        "gold",
        {
            "generation_kwargs": {"suppress_tokens": [2]},
            "allow_mismatched_sampling": True,
            # Without it, a text of fixed length might be what is wanted.
            "missing_eos_penalty": 1.0,
        },
        causes=("no-eos", "eos-never-sampled", "sampler-settings"),
        lint=("sampler",),
    ),
    "bug-stuck": Recipe("X14", "gold", fault="stuck_scores", causes=("constant-score",)),
    "bug-clipped": Recipe(
        "X14", "gold", {**FREE, "beta": 0.1, "score_clip": 5.0}, fault="offset", causes=("constant-score",)
    ),
}

DEMO_ROLLOUTS = 60
# So that a run lives to see within 60 rollouts what comes of it, and one that is pushed far.
DEMO_LOOSE: dict[str, Any] = {**LOOSE, "learning_rate": 1.5e-3}
DEMO_FAST: dict[str, Any] = {**LOOSE, "learning_rate": 3e-3}


# The policy moves its trunk faster than a head on it follows (the recipe "demo-critic-trunk"). A critic adapter reads the
# base, which stays.
DEMO_CRITIC: dict[str, Any] = {"critic": "adapter"}


def _demo(intent: str, reward: str = "gold", settings: dict[str, Any] | None = None, **more: Any) -> Recipe:
    return Recipe(intent, reward, settings or {}, rollouts=DEMO_ROLLOUTS, world="demo", **more)


# In an order in which each mode comes soon.
RECIPES |= {
    "demo-base": _demo("healthy", settings=DEMO_CRITIC),
    "demo-drift-shuffled": _demo("M1", "gold", DEMO_FAST, fault="shuffled_scores"),
    "demo-collapse-phrase": _demo("M2", "phrase", DEMO_LOOSE, causes=("reward-peaked", "beta-too-low")),
    "demo-hack-keywords": _demo("M3", "keywords", DEMO_LOOSE, causes=("beta-too-low",)),
    "demo-critic-rate": _demo(
        "M4",
        settings={"critic_learning_rate": 0.03, "value_clip_range": None},
        causes=("critic-learning-rate", "value-clip-off"),
    ),
    "demo-still-beta": _demo("M5", settings={**FREE, "beta": 30.0}, causes=("beta-too-high",)),
    "demo-base-token-penalty": _demo("healthy", settings={**DEMO_CRITIC, "kl_placement": "token"}),
    "demo-drift-noise": _demo("M1", "noise", DEMO_FAST),
    "demo-collapse-brevity": _demo("M2", "brevity", DEMO_LOOSE, causes=("reward-peaked", "beta-too-low")),
    "demo-hack-emphasis": _demo("M3", "emphasis", DEMO_LOOSE, causes=("beta-too-low",)),
    "demo-critic-scale": _demo("M4", fault="scale", causes=("reward-scale", "reward-changed")),
    "demo-still-rate": _demo("M5", settings={"learning_rate": 1e-6}, causes=("learning-rate-too-low",)),
    "demo-base-low-rate": _demo("healthy", settings={**DEMO_CRITIC, "learning_rate": 3.5e-4}),
    "demo-far-target": _demo("hard-negative", settings={**DEMO_CRITIC, "kl_target": 10.0}),
    "demo-critic-trunk": _demo("M4"),
}


def recipes_of(world: str) -> list[str]:
    """Names of the recipes of a world."""
    return [name for name, recipe in RECIPES.items() if recipe.world == world]


def split_of(name: str, seed: int) -> str:
    """
    Where a run belongs: of the small world the first ten seeds tune the detectors, the next ten test them; the second world
    is a test on its own, `"demo"`.
    """
    if RECIPES[name].world == "demo":
        return "demo"
    return "tune" if seed < TUNE_SEEDS else "test"
