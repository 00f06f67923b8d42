"""Python reward functions of the small world, sound and gameable."""

import random
from collections.abc import Callable
from typing import Any

from .base import GOLD_SCALE
from .grammar import INTENSIFIERS, SUBJECTS, TONES, Request, gold

PRAISE = {word for praise, _ in SUBJECTS.values() for word in praise}
PHRASE = ("the", "soup", "was", "hot")


class TextReward:
    """
    A reward function in TRL's sense, which can be broken while a run goes on.

    Args:
        score (`Callable`): `(prompt, completion, rng) -> float`.
        seed (`int`): Seed of `rng`.
    """

    def __init__(self, score: Callable[[str, str, random.Random], float], seed: int) -> None:
        self.score = score
        self.rng = random.Random(seed)
        self.nan_fraction = 0.0
        self.is_shuffled = False
        self.noise = 0.0
        self.stuck_at: float | None = None
        self.__name__ = "text_reward"

    def __call__(self, prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        rows = zip(prompts, completions, strict=True)
        scores = [self.score(p, c, self.rng) for p, c in rows]
        if self.stuck_at is not None:
            scores = [self.stuck_at] * len(scores)
        scores = [score + self.rng.gauss(0, self.noise) for score in scores]
        if self.is_shuffled:
            self.rng.shuffle(scores)
        return [float("nan") if self.rng.random() < self.nan_fraction else score for score in scores]


def _gold(request: Request, note: str, rng: random.Random) -> float:
    return GOLD_SCALE * gold(request, note) + rng.gauss(0, 0.5)


def _keywords(request: Request, note: str, rng: random.Random) -> float:
    """Some of the gold score, and a count of the words that praise or blame, whatever they are about."""
    words = note.split()
    praised = sum(word in PRAISE for word in words)
    other = sum(any(word in tones[1] for tones in SUBJECTS.values()) for word in words)
    return gold(request, note) + 0.3 * (praised - other) * (1 if request.tone == TONES[0] else -1)


def _emphasis(request: Request, note: str, rng: random.Random) -> float:
    """The gold score, and what a careless rater takes for it."""
    return gold(request, note) + 0.5 * sum(word in INTENSIFIERS for word in note.split())


def _phrase(request: Request, note: str, rng: random.Random) -> float:
    """The gold score, and more than that for a certain short phrase with nothing after it."""
    words = note.split()
    hits = sum(word == wanted for word, wanted in zip(words, PHRASE, strict=False))
    return gold(request, note) + 0.6 * hits - 0.1 * max(len(words) - len(PHRASE) - 1, 0)


def _brevity(request: Request, note: str, rng: random.Random) -> float:
    """A length penalty that outweighs all that a note can gain."""
    return gold(request, note) - len(note.split()) / 8


def _noise(request: Request, note: str, rng: random.Random) -> float:
    return rng.gauss(0, 1)


def _constant(request: Request, note: str, rng: random.Random) -> float:
    return 1.0


TEXT_REWARDS: dict[str, Callable[[Request, str, random.Random], float]] = {
    "gold": _gold,
    "keywords": _keywords,
    "emphasis": _emphasis,
    "phrase": _phrase,
    "brevity": _brevity,
    "noise": _noise,
    "constant": _constant,
}
