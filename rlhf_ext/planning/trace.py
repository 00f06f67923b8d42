"""What a forward and a backward pass keep in memory, found by running them on tensors without storage."""

import inspect
import weakref
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .architecture import Architecture, _quietly, fake_model


class LiveBytes(TorchDispatchMode):
    """
    Counts the bytes of the storages that operations make while it is active, until they are freed.

    Works on real and on fake tensors. What one operation allocates and frees inside itself is not seen.

    Args:
        known (iterable of `torch.Tensor`):
            Tensors that were there before and are not counted, such as weights.
    """

    def __init__(self, known: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = self.gradients = self.gradients_at_peak = 0
        self._sizes: dict[int, int] = {}
        self._known = [tensor.untyped_storage() for tensor in known]
        self._sizes.update((storage._cdata, 0) for storage in self._known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self.add(tensor)
        return outputs

    def add(self, tensor: Tensor) -> None:
        """Count a tensor, unless its storage is counted already."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.live += self._sizes[key]
        if self.live > self.peak:
            self.peak, self.gradients_at_peak = self.live, self.gradients
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.live -= self._sizes.pop(key)

    def watch_gradients(self, model: nn.Module) -> list[Any]:
        """Keep the sum of the gradients that have been left in `.grad`; returns handles to remove."""

        def count(parameter: Tensor) -> None:
            self.gradients += parameter.numel() * parameter.element_size()

        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return [p.register_post_accumulate_grad_hook(count) for p in trainable if p.grad is None]


@dataclass(frozen=True)
class UpdateTrace:
    """
    Bytes of one training pass through a trunk, above its weights; gradients of the weights are held apart.

    Args:
        saved (`int`):
            Alive between forward and backward, the output included.
        forward (`int`):
            Peak of the forward pass.
        backward (`int`):
            Peak of the backward pass, without the gradients that were there.
        gradients_at_peak (`int`):
            Gradients that were there at that peak.
    """

    saved: int
    forward: int
    backward: int
    gradients_at_peak: int


def _autocast(dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _known(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _base(architecture: Architecture, model: nn.Module) -> Any:
    return model.get_base_model() if architecture.adapter is not None else model  # type: ignore[operator]


def _inputs(batch: int, length: int) -> dict[str, Tensor]:
    """Prompts of different lengths are padded, so there is a mask."""
    ids = torch.zeros(batch, length, dtype=torch.long)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@lru_cache(maxsize=256)
def trace_forward(architecture: Architecture, batch: int, length: int, autocast: torch.dtype | None) -> int:
    """
    Peak bytes of a trunk's forward pass without gradients, above its weights, output included.

    Args:
        architecture ([`Architecture`]):
            The model.
        batch, length (`int`):
            Shape of the input, in sequences and tokens.
        autocast (`torch.dtype`, *optional*):
            Type of mixed precision.
    """
    model, mode = fake_model(architecture)
    trunk = _base(architecture, model).base_model
    with mode, _quietly(), torch.no_grad():
        model.eval()
        inputs = _inputs(batch, length)
        live = LiveBytes(_known(model))
        with live, _autocast(autocast):
            output = trunk(**inputs, use_cache=False).last_hidden_state
        del output
    return live.peak


@lru_cache(maxsize=256)
def trace_update(
    architecture: Architecture,
    batch: int,
    length: int,
    autocast: torch.dtype | None,
    checkpointing: bool,
    accumulates: bool,
) -> UpdateTrace:
    """
    Bytes of a trunk's forward and backward pass, above its weights.

    Args:
        architecture ([`Architecture`]):
            The model; what it trains is what requires gradients in it.
        batch, length (`int`):
            Shape of the input, in sequences and tokens.
        autocast (`torch.dtype`, *optional*):
            Type of mixed precision.
        checkpointing (`bool`):
            Whether layers are computed again in the backward pass.
        accumulates (`bool`):
            Whether gradients of an earlier micro-batch are there, to which this one's are added.
    """
    model, mode = fake_model(architecture)
    with mode, _quietly():
        model.train()
        _set_checkpointing(model, checkpointing, architecture.adapter is not None)
        trunk = _base(architecture, model).base_model
        inputs = _inputs(batch, length)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if accumulates:
            for parameter in trainable:
                parameter.grad = torch.empty_like(parameter)
        live = LiveBytes([*_known(model), *(p.grad for p in trainable if p.grad is not None)])
        handles = live.watch_gradients(model)
        with live:
            with _autocast(autocast):
                output = trunk(**inputs, use_cache=False).last_hidden_state
            saved, forward = live.live, live.peak
            live.peak = live.live
            output.backward(torch.empty_like(output))
        for handle in handles:
            handle.remove()
        for parameter in trainable:
            parameter.grad = None
        _set_checkpointing(model, False, False)
    return UpdateTrace(saved, forward, live.peak - live.gradients_at_peak, live.gradients_at_peak)


def _set_checkpointing(model: Any, checkpointing: bool, has_adapter: bool) -> None:
    if not checkpointing:
        model.gradient_checkpointing_disable()
        return
    model.gradient_checkpointing_enable()
    if has_adapter:
        model.enable_input_require_grads()


@dataclass(frozen=True)
class GenerationTrace:
    """
    Bytes of generation above the weights.

    Args:
        prefill (`int`):
            Peak while the prompts are read, their cache included.
        cache (`int`):
            Keys and values at the last token.
        decode (`int`):
            Peak of the last token's forward pass, without the cache.
    """

    prefill: int
    cache: int
    decode: int


@lru_cache(maxsize=256)
def trace_generation(
    architecture: Architecture, batch: int, prompt_length: int, completion_length: int, autocast: torch.dtype | None
) -> GenerationTrace:
    """
    Bytes of `generate` with a cache that grows, in its first and its last forward pass.

    Args:
        architecture ([`Architecture`]):
            A model of kind `"lm"`.
        batch, prompt_length, completion_length (`int`):
            Sequences and tokens.
        autocast (`torch.dtype`, *optional*):
            Type of mixed precision.
    """
    model, mode = fake_model(architecture)
    lm = _base(architecture, model)
    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(lm.forward).parameters else {}
    total = prompt_length + completion_length
    with mode, _quietly(), torch.no_grad(), _autocast(autocast):
        model.eval()
        prompts, inputs = _inputs(batch, prompt_length), _inputs(batch, total)
        live = LiveBytes(_known(model))
        with live:
            del_me = lm(**prompts, use_cache=True, **last)
        del del_me
        before = _inputs(batch, total - 1)
        cache = lm(**before, use_cache=True, **last).past_key_values
        decoding = LiveBytes(_known(model))
        for tensor in _tensors_of(cache):
            decoding.add(tensor)
        inputs["input_ids"] = inputs["input_ids"][:, -1:]
        with decoding:
            lm(**inputs, past_key_values=cache, use_cache=True, **last)
        size = sum(tensor.untyped_storage().nbytes() for tensor in _tensors_of(cache))
    return GenerationTrace(live.peak, size, decoding.peak - size)


def _tensors_of(cache: Any) -> list[Tensor]:
    return [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
