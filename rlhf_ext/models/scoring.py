"""Reward model -> one score per sequence."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file

from .normalization import read_score_normalization
from .reward_adapter import RewardAdapter

# Loading arguments that say how to reach the Hub, whichever repository is read.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "token")


def hub_arguments(model_init_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Those of the loading arguments that every repository shares: account, cache and network."""
    return {name: value for name, value in (model_init_kwargs or {}).items() if name in _HUB_ARGUMENTS}


def load_reward_model(path: str, **model_init_kwargs: Any) -> PreTrainedModel:
    """
    Load a reward model, full or saved as an adapter, from the Hub or a folder.

    Args:
        path (`str`):
            Model id or folder of a sequence classifier with one label.
        model_init_kwargs:
            Passed to `from_pretrained`.

    Raises:
        ValueError: If the model is no classifier, so that its scores would be those of a random head, or has several
            labels.
    """
    hub = hub_arguments(model_init_kwargs)
    model_init_kwargs.setdefault("trust_remote_code", False)
    if find_adapter_config_file(path, **hub) is not None:
        from peft import AutoPeftModelForSequenceClassification

        return AutoPeftModelForSequenceClassification.from_pretrained(path, num_labels=1, **model_init_kwargs)
    config = AutoConfig.from_pretrained(path, trust_remote_code=model_init_kwargs["trust_remote_code"], **hub)
    if "SequenceClassification" in str(config.architectures):
        _check_one_label(config, path)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, output_loading_info=True, **model_init_kwargs
    )
    if info["missing_keys"]:
        raise ValueError(
            f"`{path}` ({', '.join(config.architectures or ['unknown architecture'])}) is not a reward model: it has no "
            f"{', '.join(sorted(info['missing_keys'])[:3])}, so its scores would be random. Train one with RewardTrainer, "
            "or pass a Python function."
        )
    return model


def _check_one_label(config: Any, name: str) -> None:
    if config.num_labels != 1:
        raise ValueError(
            f"The reward model `{name}` has {config.num_labels} labels; PPO needs one score per sequence. Train it with "
            "`num_labels=1`, or pass a Python function that reduces its outputs to a number."
        )


def same_tokens(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """
    Whether a model of the second tokenizer can be shown token ids of the first: every token has the same id, and a text
    gets the same special tokens (a BOS, or a closing question, that only one of them adds changes the score).
    """
    probe = "Is it the same?"
    return same_vocabulary(first, second) and first(probe)["input_ids"] == second(probe)["input_ids"]


def same_vocabulary(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether every token has the same id in both, EOS included."""
    return first.eos_token_id == second.eos_token_id and first.get_vocab() == second.get_vocab()


def check_reward_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """
    Refuse a reward model's tokenizer whose padding hides EOS.

    Args:
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer that the reward model is trained or used with.
        name (`str`):
            Name of the reward model in the message.

    Raises:
        ValueError: If the padding token is missing or equals EOS: the classifier of transformers finds the last real
            token by the padding id, and would take the one before EOS.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise ValueError(
            f"The tokenizer of the reward model `{name}` pads with {tokenizer.pad_token!r}, its end-of-sequence "
            f"token being {tokenizer.eos_token!r}: the score would be read one token too early. A reward model is "
            "trained with a padding token of its own, some other token of its vocabulary: set `pad_token` in "
            "RewardConfig or the recipe (`<|finetune_right_pad_id|>` for Llama 3.1). If this one was, pass PPOTrainer "
            "the tokenizer as `reward_processing_classes`."
        )


class RewardModelScorer:
    """
    A reward function in TRL's sense that wraps a reward model.

    When the reward model shares the policy's tokenizer, it reads the very token ids of the rollout, EOS included: text
    decoded and encoded again drops EOS and may split differently (TRL #1702). After the token that ends a chat answer
    comes what the chat template writes there (a newline in ChatML), because the reward model was trained to be read after
    it. With another tokenizer, or another chat template, it reads the text: a conversation through its own chat template,
    other text with its own EOS where the policy ended the answer.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`RewardAdapter`]):
            Sequence classifier with one label, or the adapter of the policy's base that is one.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The reward model's tokenizer.
        policy_tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            The policy's tokenizer.
        name (`str`):
            Name under which its scores are logged.
        batch_size (`int`):
            Sequences per forward call.
        chat_template_kwargs (`dict`, *optional*):
            Extra arguments of the chat templates.

    Raises:
        ValueError: If the model has more than one label, or its padding token equals EOS (see
            [`check_reward_tokenizer`]).
    """

    def __init__(
        self,
        model: PreTrainedModel | RewardAdapter,
        tokenizer: PreTrainedTokenizerBase,
        policy_tokenizer: PreTrainedTokenizerBase,
        name: str,
        batch_size: int,
        chat_template_kwargs: dict[str, Any] | None = None,
    ):
        check_reward_tokenizer(tokenizer, name)
        self.source: str | PreTrainedModel | RewardAdapter = model
        self.normalization = None
        if not isinstance(model, RewardAdapter):
            _check_one_label(model.config, name)
            model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
            model.eval().requires_grad_(False)
            self.normalization = read_score_normalization(model)
        self.model = model
        self.tokenizer = tokenizer
        self.policy_tokenizer = policy_tokenizer
        self.__name__ = name
        self.batch_size = batch_size
        self.chat_template_kwargs = chat_template_kwargs or {}
        self.reads_ids = same_tokens(tokenizer, policy_tokenizer)

    def __call__(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]], **_: Any
    ) -> list[float | None]:
        """Raw scores, one per sequence, in the reward model's own unit."""
        sequences = self._token_ids(prompts, completions, completion_ids)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        scores = torch.empty(len(sequences))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            scores[rows] = self._forward([sequences[i] for i in rows])
        return scores.tolist()

    def _token_ids(
        self, prompts: list[Any], completions: list[Any], completion_ids: list[list[int]]
    ) -> list[list[int]]:
        is_chat = not isinstance(prompts[0], str)
        own_template = self.tokenizer.chat_template not in (None, self.policy_tokenizer.chat_template)
        if self.reads_ids and not (is_chat and own_template):
            prompt_ids = tokenize_prompts(self.policy_tokenizer, prompts, self.chat_template_kwargs)
            closing = self._closing_ids if is_chat else []
            rows = zip(prompt_ids, completion_ids, strict=True)
            return [[*p, *c, *(closing[1:] if c[-1:] == closing[:1] else [])] for p, c in rows]
        if is_chat:
            conversations = [p + c for p, c in zip(prompts, completions, strict=True)]
            return self.tokenizer.apply_chat_template(conversations, **self.chat_template_kwargs)["input_ids"]
        ended = [ids[-1] == self.policy_tokenizer.eos_token_id for ids in completion_ids]
        # Encoders such as BERT have no EOS.
        eos = self.tokenizer.eos_token or ""
        texts = [p + c + (eos if e else "") for p, c, e in zip(prompts, completions, ended, strict=True)]
        return self.tokenizer(texts)["input_ids"]

    @cached_property
    def _closing_ids(self) -> list[int]:
        """What the policy's chat template writes after the text of an answer: the token that ends it, and what follows."""
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        text = self.policy_tokenizer.apply_chat_template(turns, tokenize=False, **self.chat_template_kwargs)
        return self.policy_tokenizer(text.rpartition("Hello")[2], add_special_tokens=False)["input_ids"]

    @torch.no_grad()
    def _forward(self, sequences: Sequence[list[int]]) -> Tensor:
        batch = self.tokenizer.pad({"input_ids": list(sequences)}, padding_side="right", return_tensors="pt")
        device = self.model.device
        outputs = self.model(
            input_ids=batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
        )
        return outputs.logits[:, 0].float().cpu()


def tokenize_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[Any], chat_template_kwargs: dict[str, Any]
) -> list[list[int]]:
    """Token ids of text or conversational prompts, as TRL's online trainers tokenise them for generation."""
    if isinstance(prompts[0], str):
        return tokenizer(text=prompts)["input_ids"]
    return tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, tokenize=True, return_dict=True, **chat_template_kwargs
    )["input_ids"]
