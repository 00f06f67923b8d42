"""Optimizer steps whose loss or gradient is not finite: they are written to files, left out, and the third ends the run."""

import os
from typing import Any

import torch
from accelerate.logging import get_logger
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .checkpoint import save_json

logger = get_logger(__name__)

STEPS_TO_SPARE = 2
"""Steps that are left out in a run because loss or gradient are not finite; the third ends it."""
FOLDER = "_nonfinite"
"""In the output folder; a push to the Hub leaves out what begins with `_`, and these are texts of the training."""


def dump_step(
    folder: str, name: str, micro_batches: list[dict[str, Tensor]], reason: str, weights: list[str], tokenizer: Any
) -> str:
    """
    Write the sequences of an optimizer step to `name.safetensors`, which [`~safetensors.torch.load_file`] reads, and what
    they say and which of their numbers are not finite to `name.json`.

    Args:
        folder (`str`):
            Where to write; made if it is not there.
        name (`str`):
            Name of the files.
        micro_batches (list of `dict[str, torch.Tensor]`):
            The step's share of the rollout, on this process.
        reason (`str`):
            What was not finite.
        weights (`list[str]`):
            Parameters that are not finite.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]):
            Decodes the tokens.

    Returns:
        `str`: path of the tensors, or why there is none: a full disk is no reason to end a run.
    """
    path = os.path.join(folder, f"{name}.safetensors")
    batch = {key: torch.cat([b[key] for b in micro_batches]).detach().cpu() for key in micro_batches[0]}
    table = {"reason": reason, "parameters not finite": weights, "sequences": _sequences(batch, tokenizer)}
    try:
        os.makedirs(folder, exist_ok=True)
        save_file(batch, path)
        save_json(table, os.path.join(folder, f"{name}.json"))
    except Exception as error:
        logger.warning(f"The batch of a step that is not finite could not be written to {path}: {error}")
        return f"not written ({error})"
    return path


def _sequences(batch: dict[str, Tensor], tokenizer: Any) -> list[dict[str, Any]]:
    numbers = {name: x for name, x in batch.items() if x.is_floating_point()}
    return [
        {
            "prompt": tokenizer.decode(batch["prompt_ids"][i][batch["prompt_mask"][i]].tolist()),
            "completion": tokenizer.decode(batch["completion_ids"][i][mask].tolist()),
            "not finite": [name for name, x in numbers.items() if not x[i][mask].isfinite().all()],
        }
        for i, mask in enumerate(batch["completion_mask"])
    ]


def parameters_not_finite(model: nn.Module) -> list[str]:
    """Names of the parameters of which this process holds a number that is not finite."""
    local = ((name, p.to_local() if hasattr(p, "to_local") else p) for name, p in model.named_parameters())
    return [name for name, p in local if p.is_floating_point() and not p.isfinite().all()]


class StopOnceSaved(TrainerCallback):
    """
    Ends a run that has left out too many steps with an error, once a checkpoint is saved.

    Args:
        trainer ([`PPOTrainer`]): The trainer; its `ends_because` says why it is to end.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for a checkpoint, from which the next run may spare as many steps as this one."""
        if self.trainer.ends_because is not None:
            self.trainer._steps_left_out = 0
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """End the run, on every process."""
        if self.trainer.ends_because is not None:
            folder = os.path.join(args.output_dir, f"checkpoint-{state.global_step}")
            raise RuntimeError(f"{self.trainer.ends_because} The weights, which are finite, are saved in `{folder}`.")
