"""
Matrix products in float32 by oneDNN, on processors where torch's own take half the width that there is.

torch gives products in float32 to MKL, which uses AVX2 on every processor that is not Intel's. oneDNN, which torch brings
too, uses AVX-512 wherever it is: twice the operations a second on an AMD Zen 4 or 5. torch has no setting that makes it
choose so; the operator called here is the one that its compiler puts into frozen models.
"""

import functools
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

FEWEST_ROWS = 16
"""Below, MKL is as fast, unless the weight is packed."""
NARROWEST = 64
"""Below, as in the products of an adapter, MKL is as fast or faster."""
PART_TOKENS = 256
"""Tokens of a forward call with gradient after which products on a CPU are no faster, while activations grow."""


@functools.cache
def is_faster_here() -> bool:
    """Whether this is an AMD processor with AVX-512, and torch has the operators."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    has_operators = all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight"))
    processor = Path("/proc/cpuinfo")
    return has_operators and processor.is_file() and "AuthenticAMD" in processor.read_text(encoding="utf-8")


def linear(inputs: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """
    [`torch.nn.functional.linear`], by oneDNN where that is faster. The two agree to rounding.

    Args:
        inputs (`torch.Tensor` of shape `(..., I)`):
            Inputs.
        weight (`torch.Tensor` of shape `(O, I)`):
            Weight, in any layout.
        bias (`torch.Tensor` of shape `(O,)`, *optional*):
            Bias.
    """
    if not (_is_plain(inputs, weight) and _is_wide(inputs, weight)):
        return nn.functional.linear(inputs, weight, bias)
    return _Linear.apply(inputs, weight, bias)


def use_in(*models: Any) -> None:
    """Let linear layers of models compute by [`linear`], where that is faster here; what is no module is passed over."""
    if not is_faster_here():
        return
    for module in (module for model in models if isinstance(model, nn.Module) for module in model.modules()):
        if type(module) is nn.Linear and "forward" not in vars(module):
            vars(module)["forward"] = MethodType(_forward, module)


def can_pack(layer: nn.Linear) -> bool:
    """Whether [`pack`] works for this layer, here."""
    return is_faster_here() and "forward" in vars(layer) and _is_plain(layer.weight, layer.weight)


def pack(layer: nn.Linear, weight: Tensor) -> None:
    """
    Let a layer compute with a copy of this weight, in the layout that oneDNN prefers and so for a single row too, until its
    attribute `packed` is deleted; only for calls without gradient.
    """
    vars(layer)["packed"] = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), None)


def _forward(layer: nn.Linear, inputs: Tensor) -> Tensor:
    packed = vars(layer).get("packed")
    if packed is None:
        return linear(inputs, layer.weight, layer.bias)
    return _by_onednn(inputs, packed, layer.bias)


def _is_plain(inputs: Tensor, weight: Tensor) -> bool:
    """Float32 on a CPU, and not to be rounded to less on the way."""
    return (
        is_faster_here()
        and inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and type(inputs) in (Tensor, nn.Parameter)
        and type(weight) in (Tensor, nn.Parameter)
        and torch.get_float32_matmul_precision() == "highest"
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


def _is_wide(inputs: Tensor, weight: Tensor) -> bool:
    return min(weight.shape) >= NARROWEST and inputs.numel() >= FEWEST_ROWS * weight.size(1)


def _by_onednn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    """The operator has no gradient of its own."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # As torch does: what is frozen needs no inputs.
        ctx.save_for_backward(inputs if ctx.needs_input_grad[1] else None, weight)
        return _by_onednn(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        inputs, weight = ctx.saved_tensors
        (outer,) = gradients
        rows = outer.reshape(-1, outer.size(-1))
        of_inputs = linear(outer, weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = linear(rows.t(), inputs.reshape(-1, inputs.size(-1)).t()) if ctx.needs_input_grad[1] else None
        return of_inputs, of_weight, rows.sum(0) if ctx.needs_input_grad[2] else None
