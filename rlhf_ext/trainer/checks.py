"""Checks of the data and the tokenizer, made before any model is loaded."""

import os
from collections.abc import Iterable
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..markdown import cut
from ..models.critic import VALUE_HEAD_FILE
from ..models.roles import check_adapter, check_trained_tokens
from ..models.scoring import hub_arguments, tokenize_prompts
from ..models.sources import check_generates, read_config, reading
from .policy import PolicySource
from .ppo_config import PPOConfig
from .prompt_formats import check_columns, check_content
from .repositories import check_repository, trusts_remote_code

# Tokens a chat template may add around the messages; prompts shorter than the context by more are not tokenised.
_TEMPLATE_MARGIN = 256

# Largest |ratio - 1| of the first pass over a rollout. Rounding of another batch shape stays far below; a wrong mask,
# position, temperature or adapter lies far above.
FIRST_PASS_BOUNDS = {torch.float32: 1e-3, torch.float16: 0.1, torch.bfloat16: 0.5}

_NO_TOKENIZER = (
    "Save one there (`tokenizer.save_pretrained(folder)`), or pass it: the policy's as `processing_class`, a reward "
    "model's as `reward_processing_classes`."
)
_NOT_ITS_OWN = (
    "Tokenizer and model do not belong together: pass the model's own as `processing_class`, or resize the model's "
    "embeddings (`model.resize_token_embeddings(len(tokenizer))`)."
)
_TOKEN_IDS = (
    "The prompts are tokenised here, which TRL's old PPOTrainer left to its user: pass the texts "
    "(`tokenizer.decode(ids)` gives them back)."
)


def load_tokenizer(model: Any, trust_remote_code: bool, **arguments: Any) -> PreTrainedTokenizerBase:
    """The tokenizer that belongs to a model id or instance; `arguments` go to `from_pretrained`."""
    name = model if isinstance(model, str) else model.config._name_or_path
    if not name:
        raise ValueError("The model has no path to load a tokenizer from. Pass the tokenizer as `processing_class`.")
    with reading("tokenizer of", name, _NO_TOKENIZER):
        return AutoTokenizer.from_pretrained(
            name, truncation_side="left", padding_side="left", trust_remote_code=trust_remote_code, **arguments
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Refuse a multimodal processor and a tokenizer without EOS."""
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise TypeError(
            f"PPOTrainer trains language models on text; got a {type(tokenizer).__name__} as `processing_class`. Pass "
            "the tokenizer (`processor.tokenizer`) if your prompts are text."
        )
    if tokenizer.eos_token_id is None:
        raise ValueError(
            "The tokenizer has no EOS token, so no completion could ever end. Set `tokenizer.eos_token` to the token "
            "that ends an answer."
        )


def check_dataset(dataset: Any, name: str) -> None:
    """Refuse a dataset that is not one, is empty, lacks prompts, holds images, or prompts that cannot be used."""
    if not isinstance(dataset, Dataset | IterableDataset):
        splits = f" with the splits {', '.join(dataset)}; pass one of them" if isinstance(dataset, dict) else ""
        raise TypeError(
            f"`{name}` must be a `datasets.Dataset` or `IterableDataset`, got {type(dataset).__name__}{splits}."
        )
    first = next(iter(dataset), None)
    if first is None:
        raise ValueError(f"`{name}` is empty. Pass at least one prompt.")
    if "prompt" not in first:
        remedy = "Rename the one that holds the prompts: `dataset.rename_column(..., 'prompt')`."
        raise ValueError(
            f"`{name}` has no column `prompt`; its columns are {sorted(first)}. "
            f"{_TOKEN_IDS if 'input_ids' in first else remedy}"
        )
    check_columns(first, name)
    check_prompts(dataset["prompt"] if isinstance(dataset, Dataset) else [first["prompt"]], name)


def check_prompts(prompts: Iterable[Any], name: str) -> None:
    """
    Refuse prompts that are empty, neither texts nor conversations, or not all of one kind.

    Args:
        prompts (`Iterable`):
            Prompts, one a row.
        name (`str`):
            What holds them, in the message.

    Raises:
        ValueError: For the first such row.
    """
    first_kind = None
    for i, prompt in enumerate(prompts):
        if isinstance(prompt, list) and prompt and all(isinstance(token, int) for token in prompt):
            raise ValueError(f"Row {i} of `{name}` holds token ids ({_shown(prompt)}). {_TOKEN_IDS}")
        if not (prompt is None or isinstance(prompt, str) or _is_conversation(prompt)):
            raise ValueError(
                f"Row {i} of `{name}` holds {_shown(prompt)}, which is no prompt: a prompt is a text, or a list of "
                "messages such as {'role': 'user', 'content': 'Hi'}."
            )
        if isinstance(prompt, list):
            check_content(prompt, f"Row {i} of `{name}`")
        if not _text(prompt).strip():
            raise ValueError(f"Row {i} of `{name}` has an empty prompt ({_shown(prompt)}). Remove such rows.")
        first_kind = first_kind or type(prompt)
        if type(prompt) is not first_kind:
            kind = "text" if isinstance(prompt, str) else "conversation"
            raise ValueError(
                f"Row {i} of `{name}` is a {kind}, unlike the rows before it. Batches are tokenised as a whole: pass texts "
                "only or conversations only."
            )


def base_config(model: str | PreTrainedModel, source: PolicySource, args: PPOConfig) -> PretrainedConfig:
    """
    Config of the policy's base, which is in a repository of its own where the policy is a saved adapter.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is no causal language model.
    """
    if not isinstance(model, str):
        return model.config
    if source.base == model:
        where = repository_arguments(args, "subfolder")
    else:
        where = hub_arguments(args.model_init_kwargs) | {"revision": source.revision or "main"}
    config = read_config("model", source.base, trusts_remote_code(args), **where)
    check_generates("model", source.base, config)
    return config


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig) -> None:
    """Refuse a tokenizer whose own tokens the model does not have."""
    size = getattr(config.get_text_config(), "vocab_size", None)
    for name in ("eos_token", "pad_token"):
        token = getattr(tokenizer, f"{name}_id")
        if size is not None and token is not None and token >= size:
            raise ValueError(
                f"The tokenizer's {name} {getattr(tokenizer, name)!r} has the id {token}, but the model's vocabulary has "
                f"{size} tokens. {_NOT_ITS_OWN}"
            )


def check_prompt_ids(
    prompt_ids: list[list[int]], tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig
) -> None:
    """Refuse prompts with tokens that the model does not have."""
    highest, size = max(map(max, prompt_ids)), config.get_text_config().vocab_size
    if highest >= size:
        raise ValueError(
            f"A prompt has the token {tokenizer.convert_ids_to_tokens(highest)!r} with the id {highest}, but the model's "
            f"vocabulary has {size} tokens. {_NOT_ITS_OWN}"
        )


def check_lengths(
    dataset: Any, name: str, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, args: PPOConfig
) -> None:
    """Refuse a prompt that does not fit the model's context together with a completion."""
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is None:
        return
    room = context - args.max_completion_length
    if room <= 0:
        raise ValueError(
            f"max_completion_length={args.max_completion_length} leaves no room for a prompt in the model's context of "
            f"{context} tokens. Lower it."
        )
    for i, prompt in enumerate(dataset["prompt"] if isinstance(dataset, Dataset) else []):
        # A token covers at least one byte, so short texts need no tokenising.
        if len(_text(prompt).encode()) + _TEMPLATE_MARGIN <= room:
            continue
        length = len(tokenize_prompts(tokenizer, [prompt], args.chat_template_kwargs or {})[0])
        if length > room:
            raise ValueError(
                f"Row {i} of `{name}` has a prompt of {length} tokens; the model's context of {context} tokens minus "
                f"max_completion_length={args.max_completion_length} leaves {room}. Shorten or drop such prompts."
            )


def check_rollout_size(dataset: Any, args: PPOConfig) -> None:
    """Refuse a dataset with fewer prompts than one rollout takes: the sampler would yield nothing."""
    prompts = args.generation_batch_size // args.num_generations
    if isinstance(dataset, Dataset) and len(dataset) < prompts:
        raise ValueError(
            f"`train_dataset` has {len(dataset)} prompts, but one rollout takes {prompts} (generation_batch_size "
            f"{args.generation_batch_size} / num_generations {args.num_generations}). Pass more prompts or lower "
            "per_device_train_batch_size or steps_per_generation."
        )


def check_inputs(
    model: str | PreTrainedModel,
    source: PolicySource,
    args: PPOConfig,
    train_dataset: Any,
    eval_dataset: Any,
    tokenizer: Any,
    ref_model: PreTrainedModel | None = None,
) -> PreTrainedTokenizerBase:
    """
    Everything that can be refused before a model is loaded; returns the tokenizer.

    Raises:
        TypeError: For a dataset or tokenizer of the wrong type.
        ValueError: For data that cannot be trained on; the message names the row and the way out.
    """
    if train_dataset is None:
        raise ValueError("`train_dataset` is required: a dataset with a column `prompt`.")
    named = {"train_dataset": train_dataset}
    if isinstance(eval_dataset, dict):
        named |= {f"eval_dataset[{key!r}]": value for key, value in eval_dataset.items()}
    elif eval_dataset is not None:
        named["eval_dataset"] = eval_dataset
    for name, dataset in named.items():
        check_dataset(dataset, name)
    check_rollout_size(train_dataset, args)
    config = base_config(model, source, args)
    if tokenizer is None:
        arguments = repository_arguments(args) if isinstance(model, str) else {}
        tokenizer = load_tokenizer(model, args.trust_remote_code, **arguments)
    check_tokenizer(tokenizer)
    check_vocabulary(tokenizer, config)
    check_trained_tokens(source.adapter, config)
    check_reference(ref_model, config)
    for name, dataset in named.items():
        if tokenizer.chat_template is None and not isinstance(next(iter(dataset))["prompt"], str):
            raise ValueError(
                f"`{name}` holds conversations, and the tokenizer has no chat template to write them with. Set "
                "`tokenizer.chat_template` (a base model has none; its chat version's can be copied), or pass texts."
            )
        check_lengths(dataset, name, config, tokenizer, args)
    return tokenizer


def check_models(model: Any, ref_model: Any) -> None:
    """Refuse what is no model, or under ZeRO-3 one that only the trainer can load."""
    if not isinstance(model, str | PreTrainedModel | PeftModel):
        raise TypeError(
            f"`model` must be a Hub id, a folder, a PreTrainedModel or a PeftModel, got {model!r} ({type(model).__name__})."
        )
    if not isinstance(ref_model, PreTrainedModel | None):
        raise TypeError(
            f"`ref_model` must be a PreTrainedModel, got {_shown(ref_model)}. Load it first "
            "(`AutoModelForCausalLM.from_pretrained(...)`), or leave it out: by default it is the initial policy."
        )
    for name, given in (("model", model), ("ref_model", ref_model)):
        # DeepSpeed marks parameters that it has spread over the processes.
        if isinstance(given, PreTrainedModel) and any(hasattr(p, "ds_id") for p in given.parameters()):
            raise ValueError(
                f"`{name}` was made where ZeRO-3 already spreads weights over the processes (zero.Init), so the reference "
                "and the critic cannot be made from it. Save it and pass its folder or id: the trainer loads it."
            )


def check_reference(ref_model: Any, config: PretrainedConfig) -> None:
    """Refuse a reference with another vocabulary than the policy's."""
    if ref_model is None:
        return
    sizes = [c.get_text_config().vocab_size for c in (ref_model.config, config)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"`ref_model` has a vocabulary of {sizes[0]} tokens, the policy one of {sizes[1]}: KL compares the same tokens "
            "in both. Pass a reference with the policy's tokenizer, or leave it out."
        )


def check_arguments(args: Any) -> None:
    """Refuse settings of another trainer."""
    if not isinstance(args, PPOConfig):
        raise TypeError(
            f"`args` must be a rlhf_ext.PPOConfig, got {type(args).__module__}.{type(args).__name__}. The arguments of "
            "PPOTrainer are `model`, `reward_funcs`, `args`, `train_dataset`, in this order."
        )


def check_roles(adapter: PeftConfig | None, args: PPOConfig, critic_model: Any) -> str:
    """
    Refuse roles that do not go together; returns the kind of the critic.

    Args:
        adapter ([`~peft.PeftConfig`], *optional*):
            Configuration of the policy's adapter, where it has one.
        args ([`PPOConfig`]):
            Settings.
        critic_model:
            What the critic is to start from.

    Raises:
        ValueError: For an adapter that cannot be one role among several, a critic that needs an adapter where there is
            none, and a `critic_model` that is no critic of that kind.
    """
    if adapter is not None:
        if not isinstance(adapter, PeftConfig):
            raise TypeError(f"`peft_config` must be a PeftConfig such as LoraConfig(...), got {adapter!r}.")
        check_adapter(adapter)
    kind = args.critic or ("model" if adapter is None else "adapter")
    if kind == "adapter" and adapter is None:
        raise ValueError(
            "critic='adapter' puts the critic on an adapter beside the policy's, but the policy has none. Pass a "
            "`peft_config`, or choose critic='model' or critic='head'."
        )
    if kind != "model" and critic_model is not None:
        if not isinstance(critic_model, str) or not os.path.isfile(os.path.join(critic_model, VALUE_HEAD_FILE)):
            raise ValueError(
                f"critic={kind!r} starts from the folder `critic` of an earlier run, which holds `{VALUE_HEAD_FILE}`; "
                f"got critic_model={critic_model!r}. For a critic that starts from a whole model choose critic='model'."
            )
    elif isinstance(critic_model, str):
        check_repository("critic_model", critic_model, args)
    return kind


def repository_arguments(args: PPOConfig, *more: str) -> dict[str, Any]:
    """Loading arguments that tokenizer and config of the policy share with its weights."""
    given = args.model_init_kwargs or {}
    names = ("revision", "gguf_file", *more)
    return hub_arguments(given) | {name: given[name] for name in names if name in given}


def _is_conversation(prompt: Any) -> bool:
    return isinstance(prompt, list) and all(
        isinstance(message, dict) and "role" in message and ("content" in message or "tool_calls" in message)
        for message in prompt
    )


def _text(prompt: str | list[dict[str, Any]] | None) -> str:
    if isinstance(prompt, str):
        return prompt
    return " ".join(str(message.get("content") or "") for message in prompt or [])


def _shown(value: Any) -> str:
    return cut(repr(value), 100)


def check_first_pass(deviation: float, dtype: torch.dtype) -> None:
    """
    Refuse to go on when the first pass over a rollout does not reproduce the rollout's log-probabilities.

    Args:
        deviation (`float`):
            Largest `|ratio - 1|` over the first minibatch, before any update.
        dtype (`torch.dtype`):
            Precision of the forward pass.

    Raises:
        RuntimeError: If the deviation is above the bound of that precision.
    """
    bound = FIRST_PASS_BOUNDS.get(dtype, FIRST_PASS_BOUNDS[torch.bfloat16])
    if not deviation <= bound:
        raise RuntimeError(
            f"The first pass over a rollout gave probability ratios up to {deviation:.3g} away from 1 (at most {bound} is "
            f"expected in {dtype}), so the update would not compare the policy with the one that generated. Usual "
            "causes: dropout (keep disable_dropout=True and the dropout of the model's config at 0), padding or position "
            "ids, another temperature, or another adapter active than during the rollout."
        )
