"""From prompts to noisy preference pairs: sample completions, then label pairs as people would, from a gold score."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Completion:
    """One sample: `ids` are the completion's tokens as sampled, EOS included where reached; `text` drops EOS."""

    prompt: str
    text: str
    prompt_ids: list[int]
    ids: list[int]


def _until_eos(ids: list[int], eos_token_id: int) -> list[int]:
    return ids[: ids.index(eos_token_id) + 1] if eos_token_id in ids else ids


def _generate(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", prompts: list[str], max_new_tokens: int
) -> list[Completion]:
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left").to(model.device)
    sequences = model.generate(
        **inputs,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    completions = []
    for prompt, row, mask in zip(prompts, sequences.tolist(), inputs["attention_mask"].tolist(), strict=True):
        width = len(mask)
        ids = _until_eos(row[width:], tokenizer.eos_token_id)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        completions.append(Completion(prompt, text, row[width - sum(mask) : width], ids))
    return completions


def sample_completions(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    prompts: Sequence[str],
    num_per_prompt: int,
    max_new_tokens: int,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Completion]]:
    """
    Sample from the model's own distribution: temperature 1, no top-k, no top-p.

    Prompts are taken in order of length, so that batches hold little padding. The global random state is left as it
    was; the same arguments give the same samples.

    Args:
        model (`PreTrainedModel`): The language model. It is used in eval mode and left in the mode it had.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer, with a padding token that is not EOS.
        prompts (`Sequence[str]`): The prompts.
        num_per_prompt (`int`): Completions for each prompt.
        max_new_tokens (`int`): Longest completion, in tokens; a longer one is cut there, without EOS.
        batch_size (`int`, *optional*, defaults to `32`): Sequences generated at once.
        seed (`int`, *optional*, defaults to `0`): Seed of the samples.
        progress (`Callable[[int, int], None]`, *optional*): Called with (sequences done, sequences in all).

    Returns:
        `list[list[Completion]]`: for each prompt, in the order given, its `num_per_prompt` completions.

    Raises:
        ValueError: If the tokenizer has no padding token, or the one it has is EOS.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"tokenizer: the padding token ({tokenizer.pad_token!r}) must be set and differ from EOS "
            f"({tokenizer.eos_token!r}), or where a completion ends cannot be read. Set `tokenizer.pad_token`."
        )
    lengths = [len(ids) for ids in tokenizer(list(prompts))["input_ids"]]
    order = sorted([*range(len(prompts))] * num_per_prompt, key=lambda index: (lengths[index], index))
    groups: list[list[Completion]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    with torch.random.fork_rng(), torch.inference_mode():
        torch.manual_seed(seed)
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = _generate(model, tokenizer, [prompts[index] for index in indices], max_new_tokens)
            for index, completion in zip(indices, batch, strict=True):
                groups[index].append(completion)
            if progress is not None:
                progress(start + len(indices), len(order))
    model.train(was_training)
    return groups


def preference_probability(gold_first: float, gold_second: float, temperature: float) -> float:
    """P(first is preferred) = sigmoid((gold_first - gold_second) / temperature) (Bradley and Terry, 1952)."""
    # tanh instead of exp: no overflow however small the temperature.
    return 0.5 * (1.0 + math.tanh(0.5 * (gold_first - gold_second) / temperature))


def label_pairs(
    groups: Sequence[Sequence[Completion]], gold: Sequence[Sequence[float]], temperature: float, seed: int = 0
) -> list[dict[str, Any]]:
    """
    Completions of one prompt two by two, the preference of each pair drawn from the gold scores (Bradley-Terry).

    The labels are noisy as people's are: the closer two gold scores, the nearer the label to a coin toss. No completion
    is in two pairs, and a pair of equal texts is left out.

    Args:
        groups (`Sequence[Sequence[Completion]]`): For each prompt, its completions, an even number of them.
        gold (`Sequence[Sequence[float]]`): Their gold scores, in the same shape.
        temperature (`float`): Gold difference at which the better one is preferred with probability sigmoid(1) = 0.73.
        seed (`int`, *optional*, defaults to `0`): Seed of the labels.

    Returns:
        `list[dict[str, Any]]`: rows in TRL's preference format (`prompt`, `chosen`, `rejected`), with `chosen_ids` and
        `rejected_ids` (prompt and completion as sampled) and, to judge by, `gold_chosen` and `gold_rejected`. Given
        the ids, TRL's `RewardTrainer` trains on them as they are. Given the text alone it would append EOS to each,
        also to a completion that was cut, and the reward model would never see what PPO shows it.

    Raises:
        ValueError: If `temperature` is not positive, a group has an odd number of completions, or `gold` and `groups`
            differ in shape.
    """
    if not temperature > 0:
        raise ValueError(
            f"temperature must be positive, got {temperature}. Small values give labels that follow gold."
        )
    if any(len(group) % 2 for group in groups):
        raise ValueError(
            f"groups: completions are paired two by two, got groups of {sorted({len(group) for group in groups})}. "
            "Sample an even number for every prompt."
        )
    if [len(group) for group in groups] != [len(scores) for scores in gold]:
        raise ValueError("gold must hold one score for each completion in groups, in the same shape.")
    draw = random.Random(seed)
    rows = []
    for group, scores in zip(groups, gold, strict=True):
        scored = list(zip(group, scores, strict=True))
        for first, second in zip(scored[::2], scored[1::2], strict=True):
            if first[0].text == second[0].text:
                continue
            first_wins = draw.random() < preference_probability(first[1], second[1], temperature)
            rows.append(_row(first, second) if first_wins else _row(second, first))
    return rows


def _row(chosen: tuple[Completion, float], rejected: tuple[Completion, float]) -> dict[str, Any]:
    return {
        "prompt": chosen[0].prompt,
        "chosen": chosen[0].text,
        "rejected": rejected[0].text,
        "chosen_ids": chosen[0].prompt_ids + chosen[0].ids,
        "rejected_ids": rejected[0].prompt_ids + rejected[0].ids,
        "gold_chosen": chosen[1],
        "gold_rejected": rejected[1],
    }
