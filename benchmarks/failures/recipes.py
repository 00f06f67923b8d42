"""What is done to a run. Says nothing about what comes of it: labels are read off the oracle."""

from dataclasses import dataclass, field
from typing import Any

ROLLOUTS = 100
# Reward models of a kind; even, so that the tune and the test half share none.
SEEDS = 10
# A healthy run, confirmed by the oracle.
BASE: dict[str, Any] = {
    "per_device_train_batch_size": 32,
    "steps_per_generation": 2,
    "num_iterations": 2,
    "max_completion_length": 28,
    "learning_rate": 6e-4,
    "critic_learning_rate": 1e-3,
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
        critic (`str`): `"ready"` (the reward model, or for a Python function one that knows the careless writer) or
            `"new"` (the policy's trunk and a value of zero).
        causes (`tuple[str]`): Causes that would be right to name, where the recipe leaves no doubt.
    """

    intent: str
    reward: str = "good"
    settings: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    rollouts: int = ROLLOUTS
    num_subjects: int = 2
    critic: str = "ready"
    causes: tuple[str, ...] = ()


RECIPES: dict[str, Recipe] = {
    "base": Recipe("healthy"),
    "base-gold": Recipe("healthy", "gold"),
    "base-token-penalty": Recipe("healthy", settings={"kl_placement": "token"}),
    "base-low-rate": Recipe("healthy", settings={"learning_rate": 3e-4}),
    "far-target": Recipe("hard-negative", "gold", {"kl_target": 12.0}),
    "length-growth": Recipe("hard-negative", "gold", num_subjects=3),
    "critic-warmup": Recipe("hard-negative", "gold", {"critic_warmup_rollouts": 12}, critic="new"),
    "rate-restart": Recipe(
        "hard-negative",
        settings={"lr_scheduler_type": "cosine_with_restarts", "lr_scheduler_kwargs": {"num_cycles": 2}},
    ),
    "curriculum": Recipe("hard-negative", "gold", fault="curriculum"),
    "resume": Recipe("hard-negative", fault="resume"),
    "short": Recipe("hard-negative", rollouts=50),
    "small-batch": Recipe("hard-negative", settings={"per_device_train_batch_size": 8}),
    "drift-shuffled": Recipe("M1", "gold", FAST, fault="shuffled_scores"),
    "drift-noisy": Recipe("M1", "gold", FAST, fault="noisy_scores"),
    "drift-stuck": Recipe("M1", "gold", FAST, fault="stuck_scores"),
    "drift-scale": Recipe("M1", "noisy", {**FREE, "beta": 0.1}, fault="scale"),
    "drift-rate": Recipe("M1", "good", {**LOOSE, "learning_rate": 1.5e-3, "num_iterations": 4}),
    "collapse-phrase": Recipe("M2", "phrase", {**LOOSE, "learning_rate": 3e-5}),
    "collapse-brevity": Recipe("M2", "brevity", {**LOOSE, "learning_rate": 3e-5}),
    "collapse-rate": Recipe("M2", "gold", {**LOOSE, "learning_rate": 3e-3}),
    "hack-keywords": Recipe("M3", "keywords", SLOW),
    "hack-emphasis": Recipe("M3", "emphasis", SLOW),
    "hack-noisy-model": Recipe("M3", "noisy", LOOSE),
    "hack-wordy-model": Recipe("M3", "wordy", LOOSE),
    "hack-long-model": Recipe("M3", "long", LOOSE),
    "critic-rate": Recipe("M4", "gold", {"critic_learning_rate": 0.03, "value_clip_range": None, "num_iterations": 4}),
    "critic-scale": Recipe("M4", "gold", fault="scale"),
    "critic-cold": Recipe("M4", "good", {"critic_learning_rate": 1e-7}, fault="random_critic"),
    "still-beta": Recipe("M5", "good", {**FREE, "beta": 30.0}),
    "still-target": Recipe("M5", "good", {"kl_target": 0.02}),
    "still-rate": Recipe("M5", "good", {"learning_rate": 6e-7}),
    "still-constant": Recipe("M5", "constant", {**FREE, "beta": 0.1}),
    "still-frozen": Recipe("M5", "good", fault="freeze_policy"),
    "bug-nan": Recipe("X1", "gold", fault="nan_scores"),
    "bug-sampling": Recipe(
        "X2", "gold", {"generation_kwargs": {"temperature": 1.5}, "allow_mismatched_sampling": True}
    ),
    "bug-dropout": Recipe("X3", "good", {"disable_dropout": False}, fault="dropout"),
    "bug-eos": Recipe(
        "X10", "gold", {"generation_kwargs": {"suppress_tokens": [2]}, "allow_mismatched_sampling": True}
    ),
}


def split_of(seed: int) -> str:
    """The half that a seed belongs to: even seeds tune the detectors, odd ones test them."""
    return "test" if seed % 2 else "tune"
