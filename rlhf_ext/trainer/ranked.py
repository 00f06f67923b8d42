"""Rankings of several answers to one prompt, as pairs that count once per prompt."""

from itertools import combinations
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.functional import logsigmoid
from trl.data_utils import get_dataset_column_names

RANKED = "completions"
RANKING, WEIGHT = "ranking", "weight"


def is_ranked(dataset: Dataset | IterableDataset) -> bool:
    """Whether it holds rankings: a column `completions`, and no pairs yet."""
    columns = get_dataset_column_names(dataset)
    return RANKED in columns and not {"chosen", "chosen_ids"} & set(columns)


def expand_rankings(dataset: Dataset | IterableDataset, name: str) -> Dataset:
    """
    Every two answers of a ranking as a pair, the better one chosen: K answers give K(K - 1)/2 pairs.

    Args:
        dataset ([`~datasets.Dataset`]):
            Rows with `completions`, two or more answers (texts or conversations) with the best first, and as a rule their
            `prompt`.
        name (`str`):
            What it is, for messages.

    Returns:
        [`~datasets.Dataset`]: `prompt`, `chosen`, `rejected`, further columns as they were, and `ranking`, the row that
        the pair comes from.

    Raises:
        ValueError: For a stream, TRL's stepwise data, and a row that ranks nothing.
    """
    if isinstance(dataset, IterableDataset):
        raise ValueError(
            f"{name} holds rankings (`{RANKED}`) and is a stream, in which it cannot be known how many pairs there are to "
            "weigh them by. Load it without streaming."
        )
    if "labels" in dataset.column_names:
        raise ValueError(
            f"{name} has the columns `{RANKED}` and `labels`, which is TRL's format for steps of one answer (stepwise "
            f"supervision), not a ranking. For a ranking give `prompt` and `{RANKED}` alone, best first."
        )
    kept = [column for column in dataset.column_names if column != RANKED]

    def expand(rows: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        pairs: dict[str, list[Any]] = {column: [] for column in (*kept, "chosen", "rejected", RANKING)}
        for place, (index, ranking) in enumerate(zip(indices, rows[RANKED], strict=True)):
            if not isinstance(ranking, list) or len(ranking) < 2:
                raise ValueError(
                    f"Row {index} of {name} ranks {ranking!r}: `{RANKED}` must be a list of two or more, best first."
                )
            for chosen, rejected in combinations(ranking, 2):
                values = {"chosen": chosen, "rejected": rejected, RANKING: index}
                for column in pairs:
                    pairs[column].append(values[column] if column in values else rows[column][place])
        return pairs

    return dataset.map(expand, batched=True, with_indices=True, remove_columns=[RANKED], desc=f"Pairing {name}")


def with_weights(dataset: Dataset) -> Dataset:
    """
    Pairs with `weight`: 1 over the pairs of their ranking that are left, times the mean number of them, so that every
    ranking counts the same and the mean weight is 1.
    """
    _, ranking, counts = np.unique(np.asarray(dataset[RANKING]), return_inverse=True, return_counts=True)
    weights = len(ranking) / (len(counts) * counts[ranking])
    return dataset.add_column(WEIGHT, weights.tolist())


def weighted_preference_loss(
    chosen: Tensor, rejected: Tensor, weight: Tensor, margin: Tensor | None = None, center: float | None = None
) -> Tensor:
    r"""
    Bradley-Terry loss of pairs that count differently: mean of w (-log sigmoid(chosen - rejected - margin)), plus
    `center` times the mean of w (chosen + rejected)^2. With the weights of [`with_weights`], its expectation over batches
    is the mean over rankings of the mean over their pairs (Ouyang et al. 2022, equation 1).

    Args:
        chosen, rejected, weight (`torch.Tensor` of shape `(B,)`):
            Scores and weights of the pairs.
        margin (`torch.Tensor` of shape `(B,)`, *optional*):
            By how much the chosen one should be better.
        center (`float`, *optional*):
            `center_rewards_coefficient`.

    Returns:
        `torch.Tensor`: scalar.
    """
    difference = chosen - rejected if margin is None else chosen - rejected - margin
    loss = -(weight * logsigmoid(difference)).mean()
    return loss if center is None else loss + center * (weight * (chosen + rejected) ** 2).mean()


class WeightedCollator:
    """
    A collator of pairs that also hands on their `weight`.

    Args:
        collator (`Callable`): Collator of pairs.
    """

    def __init__(self, collator: Any) -> None:
        self.collator = collator

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collator(examples)
        if WEIGHT in examples[0]:
            batch[WEIGHT] = torch.tensor([example[WEIGHT] for example in examples], dtype=torch.float32)
        return batch
