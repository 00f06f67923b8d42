"""Settings of supervised fine-tuning."""

from dataclasses import dataclass

import trl

from .secrets import TokenFree


@dataclass(repr=False)
class SFTConfig(TokenFree, trl.SFTConfig):
    """Settings of [`~trl.SFTTrainer`], those of [`~trl.SFTConfig`], whose token is in nothing that is written."""
