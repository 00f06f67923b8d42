"""The small world: requests and notes of the grammar, a policy of two layers, rewards of several qualities."""

import random
from itertools import permutations
from typing import Any

from .base import REWARD_MODELS, Models
from .grammar import SUBJECTS, TONES, Request, gold, random_request
from .recipes import Recipe
from .rewards import TEXT_REWARDS, TextReward
from .world import Prompts


def split_requests(num_subjects: int = 2) -> tuple[list[Request], list[Request], list[Request]]:
    """Distinct requests, shuffled once: 184 to train on, 16 for the quality probe, 64 for the oracle."""
    requests = [Request(tone, names) for tone in TONES for names in permutations(SUBJECTS, num_subjects)]
    random.Random(0).shuffle(requests)
    return requests[:184], requests[184:200], requests[200:264]


def _asks_for_three(prompt: str) -> bool:
    return len(Request.from_prompt(prompt).subjects) == 3


class SmallWorld(Models):
    """See [`World`]."""

    samples_per_prompt = 3
    oracle_every = 4

    def prompts(self, recipe: Recipe, seed: int, rollout_size: int) -> Prompts:
        """A curriculum asks for three subjects from half-way on."""
        train, probe, held_out = split_requests(recipe.num_subjects)
        asked_later = None
        if recipe.fault == "curriculum":
            asked_later = _asks_for_three
            rng = random.Random(seed)
            half = recipe.rollouts // 2 * rollout_size
            train = [rng.choice(train) for _ in range(half)] + [random_request(rng, 3) for _ in range(half)]
            held_out += split_requests(3)[2]
        prompts = ([request.prompt for request in requests] for requests in (train, probe, held_out))
        return Prompts(*prompts, asked_later)

    def gold(self, prompts: list[str], completions: list[str]) -> list[float]:
        """Gold score of each note."""
        return [gold(Request.from_prompt(p), c) for p, c in zip(prompts, completions, strict=True)]

    def roles(self, recipe: Recipe, seed: int) -> dict[str, Any]:
        """The critic starts from the reward model, or knows what a careless writer gets."""
        if recipe.reward in REWARD_MODELS:
            reward: Any = str(self.reward_model(recipe.reward, seed))
            critic = reward
        else:
            score = TEXT_REWARDS[recipe.reward]
            reward = TextReward(lambda prompt, note, rng: score(Request.from_prompt(prompt), note, rng), seed)
            critic = str(self.critic)
        return {"model": str(self.policy), "reward_funcs": reward, "critic_model": critic}
