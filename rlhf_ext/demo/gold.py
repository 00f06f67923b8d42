"""The gold reward: what the demo's labels are drawn from and what the aligned policy is judged by."""

from collections.abc import Sequence
from functools import cache
from typing import Any


@cache
def _analyzer() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError as error:
        raise ImportError(
            "The gold reward needs the package 'vaderSentiment'. Run `pip install rlhf-ext[demo]`."
        ) from error
    return SentimentIntensityAnalyzer()


def gold_scores(completions: Sequence[str]) -> list[float]:
    """
    Compound sentiment of each text by VADER, a lexicon and rules validated against human raters.

    Only the completion is read. The demo's prompts are neutral and hold no negation, so putting the prompt in front
    changes next to no score, and what is scored is then exactly what the policy wrote.

    Args:
        completions (`Sequence[str]`): The texts, without their prompts.

    Returns:
        `list[float]`: one score in [-1, 1] a text, in the same order; 0 where no word of the lexicon occurs.

    Raises:
        ImportError: If `vaderSentiment` is not installed.

    Source: Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text",
    2014.
    """
    return [float(_analyzer().polarity_scores(text)["compound"]) for text in completions]
