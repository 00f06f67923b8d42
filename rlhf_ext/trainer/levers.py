"""The levers of `diagnostics="act"`, as the trainer has them."""

import math
import os
from typing import Any

from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import broadcast_object_list
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerControl

from ..diagnostics.remedies import Action, LeverName
from .checkpoint import checkpoint_before
from .optimization import scale_learning_rate


class ImpossibleError(Exception):
    """A lever that this run cannot move, and why."""


class Levers:
    """
    Carries out actions on a [`PPOTrainer`], the same on every process.

    Args:
        trainer ([`PPOTrainer`]): The trainer.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def __call__(self, action: Action, control: TrainerControl) -> str:
        """
        Move a lever.

        Args:
            action ([`~rlhf_ext.diagnostics.remedies.Action`]): What to do.
            control ([`~transformers.TrainerControl`]): Of the running training.

        Returns:
            `str`: what changed, with both values, or why nothing did; the lever is then left alone from here on.
        """
        try:
            return self._move(action, control)
        except ImpossibleError as reason:
            self.trainer.diagnostics.remediation.disable(action.lever, str(reason))
            return f"not possible: {reason}"

    def _move(self, action: Action, control: TrainerControl) -> str:
        match action.lever:
            case "beta":
                return self._scale_beta(action.value)
            case "update_kl":
                return self._limit_update(action.value)
            case "stop":
                return self._stop(action.since, control)
            case _:
                return self._scale_rate(action.lever, action.value)

    def _scale_beta(self, factor: float) -> str:
        controller = self.trainer.kl_controller
        if not controller.beta:
            raise ImpossibleError("the run has no KL penalty (beta=0)")
        before = controller.beta
        self.trainer.beta = controller.scale(factor)
        return f"kl/beta {before:.4g} -> {controller.beta:.4g}"

    def _scale_rate(self, lever: LeverName, factor: float) -> str:
        scheduler, optimizer = self.trainer.lr_scheduler, self.trainer.optimizer
        if isinstance(scheduler, AcceleratedScheduler):
            scheduler = scheduler.scheduler
        if not isinstance(scheduler, LambdaLR):
            raise ImpossibleError(f"the schedule {type(scheduler).__name__} does not take a factor")
        before, after = scale_learning_rate(scheduler, optimizer, factor, critic=lever == "critic_lr")
        return f"learning rate {before:.4g} -> {after:.4g}"

    def _limit_update(self, limit: float) -> str:
        if self.trainer.is_deepspeed_enabled:
            raise ImpossibleError("DeepSpeed makes its optimizer step within the backward pass")
        self.trainer.update_kl_limit = limit
        if math.isinf(limit):
            return "updates no longer end early"
        return f"an update ends once kl/update is above {limit:g} nats per token"

    def _stop(self, since: int, control: TrainerControl) -> str:
        trainer, state = self.trainer, self.trainer.state
        best = state.best_model_checkpoint
        if best is None or not os.path.isdir(best):
            best = checkpoint_before(trainer.args.output_dir, since, state.log_history)
        # The logs of the other processes have other seconds.
        [best] = broadcast_object_list([best])
        control.should_training_stop = True
        if best is None:
            return "training stops with the present policy: there is no checkpoint from before"
        state.best_model_checkpoint = best
        trainer.ends_with_best = True
        return f"training stops with the policy of {os.path.basename(best)}"
