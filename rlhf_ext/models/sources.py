"""Models and tokenizers by their id or folder: what is wrong with them, said before any weights are read."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import transformers
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PretrainedConfig

_WEIGHTS = ("model", "pytorch_model", "adapter_model")
_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".index.json", ".gguf")


@contextmanager
def reading(what: str, path: str, remedy: str = "") -> Iterator[None]:
    """
    What the libraries raise inside becomes one sentence that names the thing and says what to do.

    Args:
        what (`str`):
            What it is to the run: `"model"`, `"reward model"`.
        path (`str`):
            Hub id or folder.
        remedy (`str`, *optional*):
            What to do where it is a folder that is there; by default what a model's folder holds.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise OSError(f"The {what} {path!r} cannot be read: {_reason(path, first, remedy)}") from error


def _reason(path: str, error: str, remedy: str) -> str:
    if "trust_remote_code" in error or "custom code" in error:
        return (
            "it brings Python code of its own, which runs only where you ask for it. Read that code, and then set "
            "trust_remote_code=True."
        )
    if os.path.isdir(path):
        return f"{error.rstrip('.')}. {remedy or 'Give a folder that a model was saved to with save_pretrained.'}"
    if os.path.isabs(path) or path.startswith((".", "~")) or path.count("/") > 1:
        return f"there is no such folder. Check the path (the present folder is {os.getcwd()})."
    return (
        "there is no such folder here, and the Hub did not give it. Check the name; for a private or gated model log in "
        f"with `hf auth login`; without a network, download it before (`hf download {path}`). The Hub's answer: {error}"
    )


def read_config(what: str, path: str, trust_remote_code: bool, **where: Any) -> PretrainedConfig:
    """
    The config of a model, after a look at the weights beside it, where they are on this machine.

    Args:
        what, path (`str`):
            As in [`reading`].
        trust_remote_code (`bool`):
            Whether code of the repository may run.
        where:
            Revision, subfolder and how to reach the Hub.

    Raises:
        OSError: If there is no config, or no weights, or a file of weights is damaged.
    """
    with reading(what, path):
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code, **where)
    folder = os.path.normpath(os.path.join(path, where.get("subfolder") or ""))
    if os.path.isdir(folder) and not where.get("gguf_file"):
        _check_weights(what, folder)
    return config


def _check_weights(what: str, folder: str) -> None:
    files = [name for name in sorted(os.listdir(folder)) if name.endswith(_WEIGHT_SUFFIXES)]
    if not any(name.startswith(_WEIGHTS) for name in files):
        raise OSError(
            f"The {what} {folder!r} has no weights (model.safetensors). Save the model there with save_pretrained, or copy "
            "the missing files."
        )
    for name in files:
        if not name.endswith(".safetensors"):
            continue
        try:
            with safe_open(os.path.join(folder, name), "pt"):
                pass
        except SafetensorError as error:
            raise OSError(
                f"The {what} {folder!r}: the file {name} is damaged or was not copied to its end ({error}). Copy or "
                "download it again."
            ) from error


def check_generates(what: str, path: str, config: PretrainedConfig) -> None:
    """
    Refuse a model that cannot continue a text.

    Raises:
        ValueError: For an encoder, an encoder-decoder, or a classifier.
    """
    architectures = list(config.architectures or [])
    known = getattr(transformers, architectures[0], None) if architectures else None
    generates = known is None or known.can_generate()
    if config.is_encoder_decoder or not generates or not (architectures or getattr(config, "auto_map", None)):
        raise ValueError(
            f"The {what} {path!r} is {', '.join(architectures) or 'of no named architecture'} ({config.model_type}), which "
            "does not continue a text from left to right. PPO trains causal language models: pass one (`...ForCausalLM` "
            "under `architectures` in its config.json)."
        )
