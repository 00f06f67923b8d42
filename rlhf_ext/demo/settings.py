"""Sizes of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DemoSettings:
    """
    What decides the demo's result; written beside it, so that a second run continues only what it belongs to.

    Args:
        seed (`int`, *optional*, defaults to `0`):
            Seed of samples, labels, initial weights and rollouts.
        kl_placement (`str`, *optional*, defaults to `"terminal"`):
            See [`PPOConfig`].
        kl_target (`float`, *optional*, defaults to `6.0`):
            Distance from the untouched model that the controller holds, in nats per completion.
        num_rollouts (`int`, *optional*, defaults to `25`):
            PPO rollouts.
        rollout_size (`int`, *optional*, defaults to `32`):
            Prompts in a rollout.
        max_new_tokens (`int`, *optional*, defaults to `16`):
            Longest completion.
        pairs_per_prompt (`int`, *optional*, defaults to `2`):
            Preference pairs of a prompt, each of two new completions.
        judged_per_prompt (`int`, *optional*, defaults to `2`):
            Completions of a held-out prompt that gold judges, before and after.
        label_temperature (`float`, *optional*, defaults to `0.2`):
            Noise of the preference labels, in units of the gold score.
        reward_epochs (`float`, *optional*, defaults to `1.0`):
            Passes of the reward model over the pairs.
    """

    seed: int = 0
    kl_placement: str = "terminal"
    kl_target: float = 6.0
    num_rollouts: int = 25
    rollout_size: int = 32
    max_new_tokens: int = 16
    pairs_per_prompt: int = 2
    judged_per_prompt: int = 2
    label_temperature: float = 0.2
    reward_epochs: float = 1.0
