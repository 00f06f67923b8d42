"""Context managers that let the parent do its part of the work."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from peft import PeftModel
from torch import nn

from .ppo_config import PPOConfig


@contextmanager
def beta_for_parent(args: PPOConfig, builds_reference: bool) -> Iterator[None]:
    """The parent reads `beta` only to decide whether to load a reference model."""
    beta, args.beta = args.beta, 1.0 if builds_reference else 0.0
    try:
        yield
    finally:
        args.beta = beta


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for everything below `model`, whose own flag tells the parent that this is a training rollout."""
    if not model.training:
        yield
        return
    for child in model.children():
        child.eval()
    try:
        yield
    finally:
        model.train()


@contextmanager
def saving_adapters(model: PeftModel, names: list[str]) -> Iterator[None]:
    """`model.save_pretrained` writes these adapters only, whoever calls it."""
    model.save_pretrained = partial(model.save_pretrained, selected_adapters=names)
    try:
        yield
    finally:
        del model.save_pretrained


@contextmanager
def kept_for_continuous_batching(model: nn.Module, args: PPOConfig) -> Iterator[None]:
    """
    Weights in the type of mixed precision while the parent generates, and afterwards everything as it was.

    The parent casts the model for good, float32 masters, value head and rotary frequencies included, and leaves it in
    training mode. accelerate's mixed precision stands aside: it turns whatever has a dtype in an output into float32, and
    fails at the paged cache, which transformers returns since 5.24.
    """
    half = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    modes = [(module, module.training) for module in model.modules()]
    weights = [
        (p, p.data) for p in model.parameters() if half is not None and p.is_floating_point() and p.dtype != half
    ]
    precision, args.bf16, args.fp16 = (args.bf16, args.fp16), False, False
    forward, unprepared = model.forward, vars(model).get("_original_forward")
    if unprepared is not None:
        model.forward = unprepared
    for parameter, data in weights:
        parameter.data = data.to(half)
    try:
        yield
    finally:
        args.bf16, args.fp16 = precision
        if unprepared is not None:
            model.forward = forward
        for parameter, data in weights:
            parameter.data = data
        for module, training in modes:
            module.training = training
