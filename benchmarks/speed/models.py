"""Models on disk that all sides read: policy, reward model of the same size, and the same as an adapter of the policy."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, LlamaConfig

from rlhf_ext.demo.model import bundled_model

from ..memory import SHAPES as MEMORY_SHAPES
from ..memory import save_reward_adapter

SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "1.5b": {
        "vocab_size": 151936, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28,
        "num_attention_heads": 12, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "8b": {**MEMORY_SHAPES["llama-8b"], "tie_word_embeddings": False},
}  # fmt: skip


def prepare(folder: Path, model: str, dtype: str) -> dict[str, str]:
    """
    Make the models, unless they are there.

    Args:
        folder (`Path`): Where the models go.
        model (`str`): `smollm2` or a name in `SHAPES`.
        dtype (`str`): Precision of the weights.

    Returns:
        `dict[str, str]`: folders of `policy`, `reward` and `reward_adapter`.
    """
    paths = {kind: folder / f"{model}-{dtype}-{kind}" for kind in ("policy", "reward", "reward_adapter")}
    if all((path / "done").is_file() for path in paths.values()):
        return {kind: str(path) for kind, path in paths.items()}
    tokenizer = AutoTokenizer.from_pretrained(bundled_model(folder / "smollm2"))
    torch.manual_seed(0)
    precision = getattr(torch, dtype)
    if model == "smollm2":
        policy = AutoModelForCausalLM.from_pretrained(folder / "smollm2", dtype=precision)
        policy.save_pretrained(paths["policy"])
        reward = AutoModelForSequenceClassification.from_pretrained(folder / "smollm2", num_labels=1, dtype=precision)
    else:
        ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
        config = LlamaConfig(**SHAPES[model], **ids)
        policy = AutoModelForCausalLM.from_config(config, dtype=precision)
        policy.save_pretrained(paths["policy"])
        config.num_labels = 1
        reward = AutoModelForSequenceClassification.from_config(config, dtype=precision)
    reward.config.pad_token_id = tokenizer.pad_token_id
    reward.save_pretrained(paths["reward"])
    del reward
    save_reward_adapter(policy, str(paths["policy"]), paths["reward_adapter"])
    for path in paths.values():
        tokenizer.save_pretrained(path)
        (path / "done").touch()
    return {kind: str(path) for kind, path in paths.items()}
