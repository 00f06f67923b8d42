"""Which floating point type to compute in, and which to return."""

import torch
from torch import Tensor


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """Type for sums: float64, or float32 on Apple's MPS, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Widest type among the tensors, at least float32: a difference of bf16 log-probabilities is mostly rounding."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
