"""How much the completions of one rollout differ, from their words alone."""

from collections import Counter
from collections.abc import Sequence


def duplicate_fraction(prompts: Sequence[str], completions: Sequence[str]) -> float:
    """
    Share of completions that also stand under another prompt.

    Args:
        prompts (`list[str]`): Prompt of each completion.
        completions (`list[str]`): At least one.
    """
    owners: dict[str, set[str]] = {}
    for prompt, completion in zip(prompts, completions, strict=True):
        owners.setdefault(completion, set()).add(prompt)
    return sum(len(owners[completion]) > 1 for completion in completions) / len(completions)


def distinct_ngrams(completions: Sequence[str], n: int = 2) -> float | None:
    """
    Share of distinct word `n`-grams in all completions together ([Li et al.
    2016](https://huggingface.co/papers/1510.03055)); `None` where no completion has `n` words.
    """
    grams = [gram for completion in completions for gram in _ngrams(completion, n)]
    return len(set(grams)) / len(grams) if grams else None


def repeated_ngrams(completions: Sequence[str], n: int = 4) -> float | None:
    """Share of word `n`-grams that stood in the same completion before; `None` where no completion has `n` words."""
    total = repeated = 0
    for completion in completions:
        counts = Counter(_ngrams(completion, n))
        total += counts.total()
        repeated += counts.total() - len(counts)
    return repeated / total if total else None


def _ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    words = text.split()
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def text_metrics(prompts: Sequence[str], completions: Sequence[str]) -> dict[str, float]:
    """`dup_frac`, `distinct2` and `rep4` of a rollout, those that exist."""
    found = {
        "dup_frac": duplicate_fraction(prompts, completions),
        "distinct2": distinct_ngrams(completions),
        "rep4": repeated_ngrams(completions),
    }
    return {name: value for name, value in found.items() if value is not None}
