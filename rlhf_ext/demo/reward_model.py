"""The demo's reward model: the lower half of the base model, which reads a completion and is then asked how it was."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# A language model's last state is about the next token, and says little of the mood of a text that stops anywhere: a
# linear probe on it tells 61 % of the pairs right. After this opening of a judgement the mood is the next token: 72 %.
READOUT = "\nAll in all, it was"


def readout_tokenizer(folder: str | os.PathLike[str]) -> "PreTrainedTokenizerBase":
    """The tokenizer of `folder`, which also appends the tokens of `READOUT` to every text; it is saved that way."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(READOUT)["input_ids"]
    readout = {"id": "<readout>", "ids": ids, "tokens": tokenizer.convert_ids_to_tokens(ids)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <readout>", special_tokens=[readout])
    return tokenizer


def with_readout(pair: dict[str, Any], readout_ids: list[int]) -> dict[str, list[int]]:
    """The token ids of a preference pair as the reward model reads them."""
    return {name: pair[name] + readout_ids for name in ("chosen_ids", "rejected_ids")}


def untrained_reward_model(folder: str | os.PathLike[str]) -> "PreTrainedModel":
    """
    A classifier from the lower half of the base model, of which the upper third is trained.

    The mood of a text is decided halfway up (a probe gains nothing from the layers above), and both training and
    scoring cost half as much. The head starts at zero, where every pair is even.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    layers = AutoConfig.from_pretrained(folder).num_hidden_layers // 2 + 1
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, num_hidden_layers=layers)
    model.score.weight.data.zero_()
    model.model.embed_tokens.requires_grad_(False)
    for layer in model.model.layers[: layers * 5 // 8]:
        layer.requires_grad_(False)
    return model
