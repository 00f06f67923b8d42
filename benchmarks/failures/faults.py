"""What is broken on purpose in some recipes, beyond settings."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from rlhf_ext.trainer import measured

SCALE = 10.0
BONUS = 10.0
OFFSET = 20.0
DROPOUT = 0.1


class _From(TrainerCallback):
    """Calls `action` once, when `fraction` of the run is over."""

    def __init__(self, fraction: float, action: Callable[[], None]) -> None:
        self.fraction = fraction
        self.action = action
        self.done = False

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self.done and state.global_step >= self.fraction * state.max_steps:
            self.done = True
            self.action()


def _scale(trainer: Any) -> None:
    """The reward's scale grows tenfold half-way."""
    shift, unit = trainer._score_affine
    trainer.add_callback(_From(0.5, lambda: setattr(trainer, "_score_affine", (shift, unit / SCALE))))


def _add_to_scores(trainer: Any, bonus: float) -> None:
    shift, unit = trainer._score_affine
    trainer._score_affine = shift - bonus * unit, unit


def _bonus(trainer: Any) -> None:
    """Half-way somebody adds a bonus that every note gets."""
    trainer.add_callback(_From(0.5, lambda: _add_to_scores(trainer, BONUS)))


def _offset(trainer: Any) -> None:
    """Scores on a scale from 0 to a few tens, which nobody centred."""
    _add_to_scores(trainer, OFFSET)


def _breaks_reward(fraction: float, **state: Any) -> Callable[[Any], None]:
    """The Python reward function is in that state from `fraction` of the run on."""

    def fault(trainer: Any) -> None:
        reward = trainer.reward_funcs[0]
        trainer.add_callback(_From(fraction, lambda: vars(reward).update(state)))

    return fault


def _freeze_policy(trainer: Any) -> None:
    """Only the critic is trained: somebody froze the wrong parameters."""
    for name, parameter in trainer.model.named_parameters():
        if not name.startswith("critic."):
            parameter.requires_grad_(False)


def _random_critic(trainer: Any) -> None:
    """The critic starts from noise and a head that says anything."""
    generator = torch.Generator().manual_seed(trainer.args.seed)
    for module in trainer.critic.modules():
        if isinstance(module, nn.Linear):
            module.weight.data.normal_(0, 0.5, generator=generator)


def _dropout(trainer: Any) -> None:
    """Dropout is on in the update, and the trainer's own check of the first pass is taken out."""
    for module in trainer.model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = DROPOUT
    measured.check_first_pass = lambda *_: None


FAULTS: dict[str, Callable[[Any], None]] = {
    "scale": _scale,
    "bonus": _bonus,
    "offset": _offset,
    # Every score goes to another note, as when rows are joined in the wrong order.
    "shuffled_scores": _breaks_reward(1 / 3, is_shuffled=True),
    # A judge that was replaced by one that hardly looks.
    "noisy_scores": _breaks_reward(1 / 3, noise=8.0),
    # A server that answers with its default.
    "stuck_scores": _breaks_reward(1 / 3, stuck_at=0.0),
    "nan_scores": _breaks_reward(1 / 2, nan_fraction=0.05),
    "freeze_policy": _freeze_policy,
    "random_critic": _random_critic,
    "dropout": _dropout,
}
"""Name -> what is done to a trainer before it trains. `curriculum` and `resume` are ways of running, see `world`."""
