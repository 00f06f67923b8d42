"""Held-out pairs as a reward model reads them: lengths, texts, and the report that is made of them."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from trl.data_utils import common_prefix_length

from ..report_card import ReportCard
from ..reward_report import Mistake, RewardReport, most_confident_mistakes
from .ranked import RANKING


def make_report(
    card: ReportCard,
    scores: NDArray[np.float64],
    lengths: NDArray[np.int64],
    parts: Sequence[Dataset],
    tokenizer: PreTrainedTokenizerBase,
) -> RewardReport:
    """
    What is shown beside a card.

    Args:
        card ([`~rlhf_ext.report_card.ReportCard`]):
            The card.
        scores (`np.ndarray` of shape `(N, 2)`):
            Of the chosen and the rejected completions.
        lengths (`np.ndarray` of shape `(N, 2)`):
            Their tokens.
        parts (list of [`~datasets.Dataset`]):
            The N pairs, tokenised, in this order.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that made the ids.
    """
    begins = np.cumsum([0, *map(len, parts)])
    finite = np.isfinite(scores).all(axis=1)
    mistakes = []
    for place in most_confident_mistakes(scores[:, 0].tolist(), scores[:, 1].tolist()):
        part = int(np.searchsorted(begins, place, side="right")) - 1
        row = parts[part][place - int(begins[part])]
        first, second = _starts(row, tokenizer)
        mistakes.append(
            Mistake(
                tokenizer.decode(row["chosen_ids"][:first]),
                tokenizer.decode(row["chosen_ids"][first:]),
                tokenizer.decode(row["rejected_ids"][second:]),
                *scores[place].tolist(),
            )
        )
    return RewardReport(
        card=card,
        margins=(scores[finite, 0] - scores[finite, 1]).tolist(),
        lengths=lengths[finite].T.reshape(-1).tolist(),
        scores=scores[finite].T.reshape(-1).tolist(),
        mistakes=mistakes,
    )


def rankings_of(parts: Sequence[Dataset]) -> list[int] | None:
    """For each pair the number of its ranking, through all parts; `None` if no part holds rankings."""
    if not any(RANKING in part.column_names for part in parts):
        return None
    numbers: list[int] = []
    for part in parts:
        first = max(numbers, default=-1) + 1
        # A pair that was given as one stands for itself.
        own = part[RANKING] if RANKING in part.column_names else range(len(part))
        numbers += [first + number for number in own]
    return numbers


def completion_lengths(dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.int64]:
    """
    Lengths of the completions of tokenised pairs, in tokens, EOS and the tokens of the chat template included.

    The completion begins where `chosen_ids` (`rejected_ids`) departs from the tokenised `prompt`; without a `prompt`
    column, where the two depart from each other.

    Args:
        dataset ([`~datasets.Dataset`]):
            Pairs with `chosen_ids` and `rejected_ids`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that made the ids.

    Returns:
        `np.ndarray` of shape `(N, 2)`: lengths of the chosen and the rejected completions.
    """
    lengths = []
    for row in dataset:
        sequences = row["chosen_ids"], row["rejected_ids"]
        lengths.append([len(ids) - start for ids, start in zip(sequences, _starts(row, tokenizer), strict=True)])
    return np.asarray(lengths, dtype=np.int64)


def _starts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Where the chosen and the rejected completion begin."""
    sequences = [row["chosen_ids"], row["rejected_ids"]]
    prompts = [_prompt_ids(row, tokenizer)] * 2 if "prompt" in row else reversed(sequences)
    return [common_prefix_length(prompt, ids) for ids, prompt in zip(sequences, prompts, strict=True)]


def _prompt_ids(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if isinstance(row["prompt"], str):
        return list(tokenizer(text=row["prompt"])["input_ids"])
    tools = row.get("tools")
    encoded: Any = tokenizer.apply_chat_template(
        row["prompt"],
        tools=json.loads(tools) if isinstance(tools, str) else tools,
        add_generation_prompt=True,
        return_dict=True,
        **(row.get("chat_template_kwargs") or {}),
    )
    return encoded["input_ids"]
