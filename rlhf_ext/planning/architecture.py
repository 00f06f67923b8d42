"""Models without weights: every parameter has its shape and type, and none has storage."""

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from peft import PeftConfig, get_peft_model
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

_CLASSES = {"lm": AutoModelForCausalLM, "classifier": AutoModelForSequenceClassification, "trunk": AutoModel}


@dataclass(frozen=True, eq=False)
class Architecture:
    """
    A model as far as memory is concerned. Two are the same only if they are one object, which keeps traces of it apart.

    Args:
        config ([`~transformers.PretrainedConfig`]):
            Sizes of the model.
        kind (`str`):
            `"lm"` (with LM head), `"classifier"` (one label) or `"trunk"` (no head).
        dtype (`torch.dtype`):
            Precision of the weights that are not quantised, and in which the others are computed.
        adapter ([`~peft.PeftConfig`], *optional*):
            Adapter on the model.
        adapter_dtype (`torch.dtype`, *optional*):
            Precision of the adapter; by default what PEFT chooses: float32 on a base in half precision.
        quantization (`str`, *optional*):
            `"4bit"` or `"8bit"`: the linear layers of the base but the LM head, as bitsandbytes stores them.
        double_quantization (`bool`, *optional*, defaults to `False`):
            Whether the scales of 4-bit weights are quantised too.
        attention (`str`, *optional*, defaults to `"sdpa"`):
            `"sdpa"` or `"eager"`. Flash attention keeps what `"sdpa"` keeps.
        dropout (`bool`, *optional*, defaults to `False`):
            Whether dropout is active in training.
    """

    config: PretrainedConfig
    kind: str
    dtype: torch.dtype
    adapter: PeftConfig | None = None
    adapter_dtype: torch.dtype | None = None
    quantization: str | None = None
    double_quantization: bool = False
    attention: str = "sdpa"
    dropout: bool = False

    @property
    def hidden_size(self) -> int:
        """Width of the last hidden state."""
        return self.config.get_text_config().hidden_size

    @property
    def vocab_size(self) -> int:
        """Rows of the LM head."""
        return self.config.get_text_config().vocab_size


@dataclass(frozen=True)
class Parameter:
    """Shape and kind of one parameter."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool
    embedding: bool
    quantizable: bool
    adapter: bool

    @property
    def numel(self) -> int:
        """Number of elements."""
        return torch.Size(self.shape).numel()

    @property
    def bytes(self) -> int:
        """Bytes as stored without quantisation."""
        return self.numel * self.dtype.itemsize


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Deprecations between the libraries are not the reader's of a plan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@lru_cache(maxsize=16)
def model_on_meta(architecture: Architecture) -> PreTrainedModel:
    """The model with its adapter on the meta device."""
    kwargs = {"dtype": architecture.dtype, "attn_implementation": architecture.attention}
    with _quietly(), torch.device("meta"):
        model = _CLASSES[architecture.kind].from_config(architecture.config, **kwargs)
        if architecture.adapter is not None:
            model = get_peft_model(model, architecture.adapter)
    if architecture.adapter_dtype is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(architecture.adapter_dtype)
    if not architecture.dropout:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    return model


@lru_cache(maxsize=16)
def parameters_of(architecture: Architecture) -> tuple[Parameter, ...]:
    """Every parameter once, tied ones too."""
    model = model_on_meta(architecture)
    has_adapter = architecture.adapter is not None
    base = model.get_base_model() if has_adapter else model
    head = base.get_output_embeddings() if architecture.kind == "lm" else None
    in_embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    in_linears = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
    in_linears -= {id(head.weight)} if head is not None else set()
    found = []
    for name, parameter in model.named_parameters():
        adapter = has_adapter and parameter.requires_grad
        quantizable = id(parameter) in in_linears and not adapter and name.split(".")[-2] != "score"
        embedding = id(parameter) in in_embeddings
        shape = tuple(parameter.shape)
        found.append(Parameter(shape, parameter.dtype, parameter.requires_grad, embedding, quantizable, adapter))
    return tuple(found)


@lru_cache(maxsize=16)
def fake_model(architecture: Architecture) -> tuple[PreTrainedModel, FakeTensorMode]:
    """The model on tensors that have shapes and a device, and compute nothing; run it under the mode that is returned."""
    model = model_on_meta(architecture)
    mode = FakeTensorMode()
    replaced: dict[int, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is None:
                    continue
                if id(parameter) not in replaced:
                    empty = torch.empty(parameter.shape, dtype=parameter.dtype)
                    replaced[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
                module._parameters[name] = replaced[id(parameter)]
            for name, buffer in list(module._buffers.items()):
                if buffer is not None:
                    module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
    return model, mode


def lm_head_of(architecture: Architecture) -> tuple[bool, bool]:
    """Whether the LM head is trained, and whether it is the embedding too."""
    model = model_on_meta(architecture)
    base = model.get_base_model() if architecture.adapter is not None else model
    weight = base.get_output_embeddings().weight
    return weight.requires_grad, weight is base.get_input_embeddings().weight
