"""The policy's adapter inside the base's weights, for as long as only the policy runs."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

from .products import can_pack, pack
from .roles import POLICY


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """
    Inside, the policy's LoRA is merged into copies of the linear layers that carry it, so that a token costs one matrix
    product a layer instead of three. Afterwards the layers have the very tensors that they had: the base is the same to
    the bit, where subtracting the adapter again would leave rounding behind.

    Layers that cannot be merged so (quantised or tied weights, DoRA, other adapters) keep their adapter beside them.

    Args:
        model (`torch.nn.Module`):
            The policy, whose active adapter is its own.
    """
    kept: list[tuple[Linear, Tensor]] = []
    try:
        trim_heap()
        layers = mergeable(model)
        scratch = _scratch(layers)
        for layer in layers:
            kept.append((layer, layer.get_base_layer().weight.data))
            _merge(layer, scratch)
        del scratch
        yield
    finally:
        for layer, data in kept:
            layer.get_base_layer().weight.data = data
            vars(layer.get_base_layer()).pop("packed", None)
            layer.merged_adapters.clear()


def _scratch(layers: list[Linear]) -> Tensor:
    """
    Room for the weight of any layer that is packed. With a new tensor for each, freed once it is packed, the heap is left
    with holes of half the size of all copies.
    """
    sizes = [layer.get_base_layer().weight.numel() for layer in layers if can_pack(layer.get_base_layer())]
    return torch.empty(max(sizes, default=0), dtype=torch.float32, device="cpu")


def _merge(layer: Linear, scratch: Tensor) -> None:
    base = layer.get_base_layer()
    weight, down, up = base.weight.data, layer.lora_A[POLICY].weight, layer.lora_B[POLICY].weight
    is_packed = can_pack(base)
    out = scratch[: weight.numel()].view_as(weight) if is_packed else None
    copy = torch.addmm(weight, up.data, down.data, alpha=layer.scaling[POLICY], out=out)
    if is_packed:
        pack(base, copy)
    else:
        base.weight.data = copy
    layer.merged_adapters.append(POLICY)


def trim_heap() -> None:
    """
    Give back to the kernel what glibc's heap keeps of freed tensors, so that what comes next may find its room elsewhere.
    Other systems and allocators are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def mergeable(model: nn.Module) -> list[Linear]:
    """The layers that [`merged`] merges."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, Linear)
        and type(layer.get_base_layer()) is nn.Linear
        and POLICY in layer.lora_A
        and POLICY not in layer.lora_variant
        and not layer.lora_bias[POLICY]
        and layer.lora_A[POLICY].weight.dtype == layer.get_base_layer().weight.dtype
        and owners[id(layer.get_base_layer().weight)] == 1
    ]
