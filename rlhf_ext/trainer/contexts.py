"""Context managers that let the parent do its part of the work."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

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
