"""The small world's language: requests, notes about a restaurant, and a gold score in code."""

import random
from itertools import pairwise
from typing import NamedTuple

# Subject -> three adjectives that praise it, three that blame it; no adjective belongs to two subjects.
SUBJECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "soup": (("hot", "fresh", "tasty"), ("cold", "bland", "salty")),
    "bread": (("crisp", "warm", "soft"), ("stale", "dry", "hard")),
    "staff": (("kind", "quick", "friendly"), ("rude", "slow", "bored")),
    "music": (("gentle", "lively", "sweet"), ("loud", "harsh", "dull")),
    "room": (("bright", "clean", "cosy"), ("dark", "dirty", "cramped")),
    "price": (("fair", "low", "honest"), ("steep", "high", "silly")),
    "coffee": (("rich", "strong", "smooth"), ("weak", "burnt", "bitter")),
    "view": (("lovely", "wide", "calm"), ("grey", "ugly", "blocked")),
    "wine": (("elegant", "ripe", "round"), ("sour", "thin", "flat")),
    "dessert": (("light", "creamy", "fruity"), ("heavy", "sugary", "greasy")),
    "garden": (("green", "quiet", "shady"), ("bare", "noisy", "muddy")),
    "parking": (("easy", "free", "near"), ("scarce", "far", "costly")),
}
TONES = ("praise", "blame")
OPENINGS = (("the",), ("we", "found", "the"), ("i", "thought", "the"))
INTENSIFIERS = ("very", "really", "quite", "so")
FUNCTION_WORDS = ("was", "and", ".", ":")
VOCABULARY = sorted(
    {
        *TONES,
        *SUBJECTS,
        *(word for tones in SUBJECTS.values() for words in tones for word in words),
        *(word for opening in OPENINGS for word in opening),
        *INTENSIFIERS,
        *FUNCTION_WORDS,
    }
)
# Adjective -> its subject and tone.
ADJECTIVES = {
    word: (subject, tone)
    for subject, tones in SUBJECTS.items()
    for tone, words in zip(TONES, tones, strict=True)
    for word in words
}


class Request(NamedTuple):
    """What is asked for: praise or blame of some subjects, in this order."""

    tone: str
    subjects: tuple[str, ...]

    @property
    def prompt(self) -> str:
        """The request as the policy reads it."""
        return " ".join((self.tone, *self.subjects, ":"))

    @classmethod
    def from_prompt(cls, prompt: str) -> "Request":
        """The inverse of `prompt`."""
        tone, *subjects = prompt.split()[:-1]
        return cls(tone, tuple(subjects))


class Sentence(NamedTuple):
    """A well-formed sentence."""

    opening: int
    subject: str
    tone: str | None
    adjectives: tuple[str, ...]


def random_request(rng: random.Random, num_subjects: int = 2) -> Request:
    """A request for distinct subjects."""
    return Request(rng.choice(TONES), tuple(rng.sample(list(SUBJECTS), num_subjects)))


def random_sentence(rng: random.Random, subject: str, tone: str) -> str:
    """One of the grammar's sentences about `subject`."""
    opening = rng.choice(OPENINGS)
    first, second = rng.sample(SUBJECTS[subject][TONES.index(tone)], 2)
    intensifier = [rng.choice(INTENSIFIERS)] if rng.random() < 0.3 else []
    end = ["and", second] if rng.random() < 0.25 else []
    return " ".join([*opening, subject, "was", *intensifier, first, *end, "."])


def random_note(rng: random.Random, request: Request, care: float = 0.65, max_sentences: int = 3) -> str:
    """
    A note as the careless writer of the pretraining text writes it.

    Args:
        rng (`random.Random`): Source of randomness.
        request ([`Request`]): What was asked for.
        care (`float`): Probability that a sentence is about the next subject asked for, and that it has the right tone.
        max_sentences (`int`): The number of sentences is uniform up to it.
    """
    pending, sentences = list(request.subjects), []
    for _ in range(rng.randint(1, max_sentences)):
        subject = rng.choice(list(SUBJECTS))
        if pending and rng.random() < care:
            subject = pending.pop(0)
        other = TONES[1 - TONES.index(request.tone)]
        sentences.append(random_sentence(rng, subject, request.tone if rng.random() < care else other))
    return " ".join(sentences)


def parse(words: list[str]) -> Sentence | None:
    """The sentence that `words` (without the full stop) form, or `None` if the grammar has none."""
    for number, opening in enumerate(OPENINGS):
        rest = words[len(opening) :]
        if tuple(words[: len(opening)]) != opening or len(rest) < 3 or rest[1] != "was":
            continue
        subject, adjectives = rest[0], rest[2:]
        if adjectives[0] in INTENSIFIERS:
            adjectives = adjectives[1:]
        if len(adjectives) == 3 and adjectives[1] == "and" and adjectives[0] != adjectives[2]:
            adjectives = adjectives[::2]
        tones = {ADJECTIVES.get(word, (None, None)) for word in adjectives}
        if len(adjectives) in (1, 2) and len(tones) == 1 and next(iter(tones))[0] == subject:
            return Sentence(number, subject, next(iter(tones))[1], tuple(adjectives))
    return None


def gold(request: Request, note: str) -> float:
    """
    How well a note answers a request, between -2 and 1.5.

    Each subject asked for counts 1 / n the first time it is mentioned in the right tone and -1 / (2n) in the wrong one; the
    right order of the mentioned subjects counts up to 0.3 and variety of the openings up to 0.2. Every other sentence (off
    topic, a subject again, not of the grammar, or cut off) costs 0.25, and 0.05 a word where that is more, so that neither
    repetition nor keywords pay.
    """
    *texts, rest = (text.split() for text in note.split("."))
    cost = max(0.25, 0.05 * len(rest)) if rest else 0.0
    mentioned: dict[str, Sentence] = {}
    for words in texts:
        sentence = parse(words)
        if sentence is not None and sentence.subject in request.subjects and sentence.subject not in mentioned:
            mentioned[sentence.subject] = sentence
        else:
            cost += max(0.25, 0.05 * len(words))
    count = len(request.subjects)
    score = sum(1.0 if s.tone == request.tone else -0.5 for s in mentioned.values()) / count
    positions = [request.subjects.index(subject) for subject in mentioned]
    score += 0.3 * sum(a < b for a, b in pairwise(positions)) / max(count - 1, 1)
    score += 0.1 * (len({s.opening for s in mentioned.values()}) - 1 if mentioned else 0)
    return max(score - cost, -2.0)
