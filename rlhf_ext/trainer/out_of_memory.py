"""Where memory ran out, and which setting would lower what is needed there."""

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from accelerate.logging import get_logger

from ..planning.advice import changes_that_help
from ..planning.plan import PHASES
from .run_plan import plan_of_run

logger = get_logger(__name__)

GIB, MIB = 2**30, 2**20
_WORDS = dict(zip(PHASES, ("generation", "scoring", "the update"), strict=True))
# What torch raises as a plain RuntimeError.
_MESSAGES = re.compile(r"DefaultCPUAllocator: can't allocate memory|CUBLAS_STATUS_ALLOC_FAILED")
_WHAT_WAS_ASKED = re.compile(r"\w+ out of memory.*?is free|DefaultCPUAllocator.*?bytes")
_MOST_CHANGES = 4
_WITHOUT_A_PLAN = {
    "generate": "steps_per_generation (a smaller rollout), num_generations or max_completion_length",
    "score": "per_device_eval_batch_size (reward models) or per_device_train_batch_size (policy and reference)",
    "update": "per_device_train_batch_size (with more gradient_accumulation_steps), or set gradient_checkpointing=True",
}


class OutOfMemory(torch.OutOfMemoryError):
    """
    Memory ran out in a known phase.

    Args:
        phase (`str`): `"generate"`, `"score"` or `"update"`.
        message (`str`): What to lower.
    """

    def __init__(self, phase: str, message: str) -> None:
        super().__init__(message)
        self.phase = phase


def in_phase(phase: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    A method of [`PPOTrainer`] that, when memory runs out in it, says so with the figures of the plan of this run.

    What it calls may be in a phase of its own, which is then the one that is named.

    Args:
        phase (`str`): `"generate"`, `"score"` or `"update"`.
    """

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(method)
        def called(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return method(trainer, *args, **kwargs)
            except OutOfMemory:
                raise
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise OutOfMemory(phase, explain(trainer, phase, error)) from error

        return called

    return decorate


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_MESSAGES.search(str(error)))


def explain(trainer: Any, phase: str, error: BaseException) -> str:
    """
    The message: the phase, what was asked for, what the plan of this run says of it, and what would lower it most.

    Args:
        trainer ([`PPOTrainer`]): The trainer.
        phase (`str`): `"generate"`, `"score"` or `"update"`.
        error (`Exception`): What the allocator raised.
    """
    start = f"Out of memory in {_WORDS[phase]}, at step {trainer.state.global_step + 1} ({_what_was_asked(error)})."
    try:
        return f"{start} {_planned(trainer, phase)}"
    except Exception as reason:
        # A plan that cannot be made must not hide what happened.
        logger.info(f"There is no plan of this run: {reason}")
        return f"{start} {_lower(phase)}"


def _planned(trainer: Any, phase: str) -> str:
    plan = plan_of_run(trainer)
    sizes = ", ".join(f"{_WORDS[name]} {_size(plan.phase(name).bytes)}" for name in PHASES)
    changes = changes_that_help(plan, phase)[:_MOST_CHANGES]
    options = "; ".join(f"{change.setting} -> {_size(change.peak)}" for change in changes)
    lower = f"What would lower {_WORDS[phase]} most, each alone: {options}." if changes else _lower(phase)
    return (
        f"The plan of this run, with prompts of {plan.settings.prompt_length} tokens and without what the libraries take "
        f"(docs/plan.md): {sizes}, most of it at: {plan.phase(phase).name}. {lower}"
    )


def _lower(phase: str) -> str:
    return f"Lower {_WITHOUT_A_PLAN[phase]}."


def _what_was_asked(error: BaseException) -> str:
    text = " ".join(str(error).split())
    found = _WHAT_WAS_ASKED.search(text)
    return (found[0] if found else text or type(error).__name__).rstrip(". ")


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / MIB:.1f} MiB"
