"""A reward function that raises: which one, on which sample, and where in its code."""

import os
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from ..markdown import cut
from .out_of_memory import is_out_of_memory

_CHARACTERS = 120


class RewardFunctionError(RuntimeError):
    """A reward function raised; what it raised is the cause of this error."""


def call_or_explain(function: Callable[..., Any], name: str, inputs: dict[str, Any]) -> Any:
    """
    What the function returns; where it raises, the error names the function and the sample.

    To find the sample, the function is called again, with one sample at a time and in their order, up to the first on
    which it raises the same. That costs at most the batch once more, one call a sample, before the run ends; what the
    function does beside returning (a file, a counter, a paid call) happens again. Halving the batch would take fewer calls,
    but could not tell a sample that raises on its own from one that does so only beside others. A function that could not
    be called with these columns at all is not called again.

    Args:
        function (`Callable`): Reward function in TRL's sense.
        name (`str`): Its name.
        inputs (`dict`): What it is called with, a list per column.

    Raises:
        RewardFunctionError: With what it raised as its cause. Lack of memory is passed on as it is.
    """
    try:
        return function(**inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        samples = _one_by_one(inputs) if _was_entered(error) else ()
        guilty = next((i for i, one in samples if _raises(function, one, type(error))), None)
        raise RewardFunctionError(_message(name, inputs, error, guilty)) from error


async def await_or_explain(function: Callable[..., Any], name: str, inputs: dict[str, Any]) -> Any:
    """[`call_or_explain`] for a coroutine function."""
    try:
        return await function(**inputs)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        for i, one in _one_by_one(inputs) if _was_entered(error) else ():
            try:
                await function(**one)
            except type(error):
                raise RewardFunctionError(_message(name, inputs, error, i)) from error
            except Exception:
                continue
        raise RewardFunctionError(_message(name, inputs, error, None)) from error


def _was_entered(error: Exception) -> bool:
    """Whether it was raised inside the function, and not by the call."""
    return len(traceback.extract_tb(error.__traceback__)) > 1


def _raises(function: Callable[..., Any], inputs: dict[str, Any], kind: type[Exception]) -> bool:
    try:
        function(**inputs)
    except kind:
        return True
    except Exception:
        # Something else that a batch of one brings about.
        return False
    return False


def _one_by_one(inputs: dict[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The samples as batches of one, without the functions that write to the log of the run."""
    count = len(inputs["completions"])
    silent: dict[str, Any] = {name: _ignore for name in ("log_extra", "log_metric") if name in inputs}
    for i in range(count):
        columns = {k: v[i : i + 1] for k, v in inputs.items() if isinstance(v, list) and len(v) == count}
        yield i, {**inputs, **columns, **silent}


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _message(name: str, inputs: dict[str, Any], error: Exception, guilty: int | None) -> str:
    raised = f"The reward function {name!r} raised {type(error).__name__}: {error}"
    if not _was_entered(error):
        return (
            f"{raised}. It is called as function(prompts=..., completions=..., completion_ids=..., and the columns of the "
            "dataset): let it take those that it needs by name, and the others as **kwargs."
        )
    frames = traceback.extract_tb(error.__traceback__)
    start = f"{raised} ({os.path.basename(frames[-1].filename)}:{frames[-1].lineno})"
    count = len(inputs["completions"])
    if guilty is None:
        return f"{start} on a batch of {count} samples, none of which makes it raise on its own. Mend the function."
    prompt, completion = (shown(inputs[column][guilty]) for column in ("prompts", "completions"))
    return (
        f"{start} on sample {guilty} of {count} (counted from 0, on this process): prompt {prompt}, completion "
        f"{completion}. Mend the function, or let it return None for a sample that it cannot judge."
    )


def shown(value: Any) -> str:
    """A value in a message, of which a long one is cut."""
    return cut(repr(value), _CHARACTERS)
