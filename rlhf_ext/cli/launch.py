"""Starts a training program through accelerate's launcher."""

import argparse
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .exits import COMMAND_VARIABLE, DEBUG_VARIABLE, ERRORS_VARIABLE, FAILED, messages_of

SHARED = {"debug", "gradient_accumulation_steps", "help"}
"""Options that both the launcher and the programs know: they are the program's."""


def split_arguments(arguments: list[str], launcher: argparse.ArgumentParser) -> tuple[list[str], list[str]]:
    """
    Tell the launcher's options from the program's.

    Args:
        arguments (`list[str]`):
            Options of both, in any order.
        launcher (`argparse.ArgumentParser`):
            The launcher's parser.

    Returns:
        `tuple`: the launcher's, and the program's.
    """
    takes_value = {
        string: action.nargs != 0
        for action in launcher._actions
        for string in action.option_strings
        if string.startswith("--") and string.removeprefix("--") not in SHARED
    }
    own: list[str] = []
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        name, equals, _ = argument.partition("=")
        if name not in takes_value:
            rest.append(argument)
            continue
        own.append(argument)
        if takes_value[name] and not equals:
            own += [value for value in (next(remaining, None),) if value is not None]
    return own, rest


def launch(module: str, arguments: list[str], config: str | None, command: str, debug: bool) -> None:
    """
    Run a module as `accelerate launch` does, and end as it ends.

    Args:
        module (`str`):
            Program, such as `"rlhf_ext.programs.ppo"`.
        arguments (`list[str]`):
            Options of the launcher and of the program.
        config (`str`, *optional*):
            Configuration of accelerate; by default the user's own, or else all GPUs of this machine.
        command (`str`):
            What the user called, for messages.
        debug (`bool`):
            Let tracebacks through.

    Raises:
        SystemExit: If the program failed, with its exit status.
    """
    from accelerate.commands.launch import launch_command, launch_command_parser

    parser = launch_command_parser()
    # Its own error would speak of `accelerate launch` and print 60 lines of usage.
    parser.error = _refuse
    own, rest = split_arguments(arguments, parser)
    given = ["--config_file", config] if config else []
    parsed = parser.parse_args([*given, *own, "--module", module, *rest])
    if not debug:
        # What was not given has the defaults that docs/cli.md names; what failed is said below, once.
        logging.getLogger("accelerate.commands.launch").setLevel(logging.ERROR)
        logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="rlhf-ext-") as folder, _environment(command, folder, debug):
        status = _run(launch_command, parsed)
        for line in messages_of(Path(folder)) or _of_status(command, status):
            print(line, file=sys.stderr)
    if status:
        sys.exit(128 - status if status < 0 else status)


def _run(launch_command: Any, parsed: argparse.Namespace) -> int:
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    with _signals_for_children():
        try:
            launch_command(parsed)
        except subprocess.CalledProcessError as error:
            return error.returncode
        except ChildFailedError as error:
            return error.get_first_failure()[1].exitcode or FAILED
        except SignalException as error:
            return -error.sigval
        except SystemExit as error:  # with the launcher's --quiet
            return error.code if isinstance(error.code, int) else FAILED
    return 0


@contextmanager
def _environment(command: str, folder: str, debug: bool) -> Iterator[None]:
    before = dict(os.environ)
    os.environ[COMMAND_VARIABLE] = command
    if debug:
        os.environ[DEBUG_VARIABLE] = "1"
    else:
        os.environ[ERRORS_VARIABLE] = folder
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _signals_for_children() -> Iterator[None]:
    """
    Stay until the program has saved its checkpoint. A terminal sends Ctrl-C to it as well, SIGTERM is handed on.

    Several processes are torch's, which takes both signals itself.
    """
    import psutil  # a dependency of accelerate

    def hand_on(signum: int, frame: Any) -> None:
        for child in psutil.Process().children():
            child.send_signal(signum)

    previous = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: None),
        signal.SIGTERM: signal.signal(signal.SIGTERM, hand_on),
    }
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _of_status(command: str, status: int) -> list[str]:
    """For a program that ended without a word of its own; a number above 0 comes with one, or with a checkpoint."""
    if status == -signal.SIGKILL:
        return [
            f"{command}: error: a process was killed (SIGKILL). Most often the machine had no memory left: `rlhf-ext plan` "
            "says what the run takes and what lowers it."
        ]
    return [f"{command}: error: a process ended with {signal.Signals(-status).name}."] if status < 0 else []


def _refuse(message: str) -> None:
    raise ValueError(f"for the launcher: {message}. `accelerate launch --help` lists its options.")
