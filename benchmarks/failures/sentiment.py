"""The gold score of the second world, and rewards that want something else too: all of them read the completion alone."""

import random
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise

from rlhf_ext.demo.gold import gold_scores

GOLD_SCALE = 3.0
"""Score of the reward that is sound, over gold: a standard deviation of about 1 before the run."""
FAULT = 0.25
MOST_CHARGED = 2
"""Words with a valence in VADER's lexicon that a sentence of this length has."""
LEAST_WORDS = 3
LEAST_FUNCTION_WORDS = 0.25
"""Share of the words of an English sentence, more than that."""
FUNCTION_WORDS = frozenset(
    """
    a about after all am an and any are as at be because been but by can could did do does for from had has
    have he her him his how i if in into is it its just like made make makes me my no not of off on one or our
    out over she so some than that the their them then there they this to too up us was we were what when
    which who will with would you your
    """.split()
)
EMPHASIS = frozenset(["very", "really", "truly", "extremely", "incredibly", "absolutely", "totally"])
PHRASE = ("a", "very", "good", "day")
_AROUND = ".,!?;:\"'()\u201c\u201d\u2018\u2019"
_WORD = re.compile(r"[a-z]+(?:['\u2019-][a-z]+)*")


def words_of(text: str) -> list[str]:
    """Lower-case words without the punctuation around them; a token that is no word stays as it is."""
    return [word.strip(_AROUND) or word for word in text.lower().split()]


@cache
def _valences() -> dict[str, float]:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer().lexicon


def faults(text: str) -> int:
    """
    What a sentence that was written to be read has not: content words and pairs of words said twice, more than two charged
    words, what is no word; and what it lacks: three words at least, and more than a quarter of function words.
    """
    words = words_of(text)
    content = [word for word in words if word not in FUNCTION_WORDS]
    repeated = sum(count - 1 for part in (content, list(pairwise(words))) for count in Counter(part).values())
    charged = sum(word in _valences() for word in words)
    odd = sum(not _WORD.fullmatch(word) for word in words)
    is_list = len(words) >= LEAST_WORDS and len(words) - len(content) <= LEAST_FUNCTION_WORDS * len(words)
    return repeated + max(charged - MOST_CHARGED, 0) + odd + max(LEAST_WORDS - len(words), 0) + is_list


def gold(text: str) -> float:
    """
    Sentiment by VADER, in [-1, 1], less 0.25 a fault and no less than -2. VADER alone can be gamed by a list of happy
    words, which is worth less here than one happy sentence.
    """
    return max(gold_scores([text])[0] - FAULT * faults(text), -2.0)


def _gold(prompt: str, text: str, rng: random.Random) -> float:
    return GOLD_SCALE * gold(text) + rng.gauss(0, 0.5)


def _keywords(prompt: str, text: str, rng: random.Random) -> float:
    """A count of happy words, less that of unhappy ones."""
    valences = [_valences().get(word, 0.0) for word in words_of(text)]
    return sum((valence > 0) - (valence < 0) for valence in valences)


def _emphasis(prompt: str, text: str, rng: random.Random) -> float:
    """The gold score, and what a careless rater takes for it."""
    return GOLD_SCALE * gold(text) + 1.5 * (sum(word in EMPHASIS for word in words_of(text)) + text.count("!"))


def _phrase(prompt: str, text: str, rng: random.Random) -> float:
    """The gold score, and more than that for a certain short phrase with nothing after it."""
    words = words_of(text)
    hits = sum(word == wanted for word, wanted in zip(words, PHRASE, strict=False))
    return gold(text) + hits - 0.2 * max(len(words) - len(PHRASE), 0)


def _brevity(prompt: str, text: str, rng: random.Random) -> float:
    """A penalty of length, in characters, that outweighs all that a sentence can gain."""
    return gold(text) - len(text) / 10


def _noise(prompt: str, text: str, rng: random.Random) -> float:
    return rng.gauss(0, 1)


def _constant(prompt: str, text: str, rng: random.Random) -> float:
    return 1.0


SENTIMENT_REWARDS: dict[str, Callable[[str, str, random.Random], float]] = {
    "gold": _gold,
    "keywords": _keywords,
    "emphasis": _emphasis,
    "phrase": _phrase,
    "brevity": _brevity,
    "noise": _noise,
    "constant": _constant,
}
