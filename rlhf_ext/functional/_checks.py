"""Checks at the boundary: a wrong shape fails here, by name, and not as a silent broadcast later."""

import math

import torch
from torch import Tensor

_LAYOUT = {1: "(B,)", 2: "(B, C)"}


def check_shapes(rank: int, **tensors: Tensor) -> None:
    """Raise `ValueError` unless every tensor has `rank` dimensions and the shape of the first one."""
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.dim() != rank:
            raise ValueError(f"`{name}` has shape {tuple(tensor.shape)}, expected {_LAYOUT[rank]}.")
        if tensor.shape != first.shape:
            raise ValueError(
                f"`{name}` has shape {tuple(tensor.shape)}, expected {_LAYOUT[rank]} = {tuple(first.shape)}, "
                f"the shape of `{first_name}`."
            )


def check_bool(**masks: Tensor) -> None:
    """Raise `ValueError` unless every tensor is boolean; an integer mask would index or multiply by accident."""
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise ValueError(
                f"`{name}` of shape {tuple(mask.shape)} has dtype {mask.dtype}, expected torch.bool "
                "(True = real token); convert it with `.bool()`."
            )


def check_masked(mask: Tensor, **tensors: Tensor) -> None:
    """Raise `ValueError` unless `mask` is boolean and has the shape of every tensor, whatever their rank."""
    check_bool(mask=mask)
    for name, tensor in tensors.items():
        if tensor.shape != mask.shape:
            raise ValueError(
                f"`mask` has shape {tuple(mask.shape)}, expected {tuple(tensor.shape)}, the shape of `{name}`."
            )


def check_number(name: str, value: float, low: float, high: float = math.inf, *, above_low: bool = False) -> None:
    """Raise `ValueError` unless `value` is finite and in `[low, high]`, or in `(low, high]` with `above_low`."""
    inside = low < value <= high if above_low else low <= value <= high
    if not (inside and math.isfinite(value)):
        bracket = "(" if above_low else "["
        raise ValueError(f"`{name}` is {value}, expected a finite number in {bracket}{low}, {high}].")
