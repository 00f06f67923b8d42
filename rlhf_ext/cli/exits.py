"""How a command ends: with a message instead of a traceback, and with the exit status that docs/cli.md lists."""

import errno
import json
import os
import signal
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 128 + signal.SIGINT

COMMAND_VARIABLE = "RLHF_EXT_COMMAND"
"""What the user called, for the messages of a program that `rlhf-ext` launched."""
ERRORS_VARIABLE = "RLHF_EXT_ERRORS"
"""Folder where the processes of a launch leave their messages for `rlhf-ext` to print each once."""
DEBUG_VARIABLE = "RLHF_EXT_DEBUG"
"""Set to 1: tracebacks are printed as Python does."""

_REMEDIES = {
    errno.ENOENT: "check the path",
    errno.EACCES: "choose another place, or change its permissions",
    errno.EPERM: "choose another place, or change its permissions",
    errno.EROFS: "choose another place",
    errno.EISDIR: "give a file",
    errno.ENOTDIR: "give a path without a file on the way",
    errno.ENOSPC: "make room, or choose another disk",
}
_INPUT_ERRORS = (OSError, ValueError, TypeError, ImportError)
_PACKAGE = Path(__file__).parents[1]


@contextmanager
def errors_as_messages(command: str, debug: bool = False, keep_traceback: bool = False) -> Iterator[None]:
    """
    End the process with one message where the block raises.

    Args:
        command (`str`):
            What the user called, such as `"rlhf-ext check"`.
        debug (`bool`, *optional*, defaults to `False`):
            Let the traceback through.
        keep_traceback (`bool`, *optional*, defaults to `False`):
            Write the traceback to a file where the error was not raised by this package on purpose: a long run should not
            have to fail twice.

    Raises:
        SystemExit: With 2 for what the user gave (`OSError`, `ValueError`, `TypeError`, `ImportError`), 130 for Ctrl-C, 1
            for anything else.
    """
    try:
        yield
    except BrokenPipeError:
        # Whoever reads, such as `head`, has had enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except KeyboardInterrupt:
        end(command, "stopped", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        message = f"error: {_message(error)}"
        if keep_traceback and not _raised_on_purpose(error):
            message += f"\n(traceback: {_kept(error)})"
        end(command, message, WRONG_INPUT if isinstance(error, _INPUT_ERRORS) else FAILED)


def run_program(main: Callable[[], None]) -> None:
    """
    Run a training program, whose errors end it with a message instead of a traceback.

    With `RLHF_EXT_DEBUG=1` in the environment, which `rlhf-ext --debug` sets, the traceback is printed.

    Args:
        main (`Callable`):
            The program.
    """
    command = os.environ.get(COMMAND_VARIABLE) or Path(sys.argv[0]).name
    # TRL still sets what transformers is about to rename, and recipes may.
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated", category=FutureWarning)
    with errors_as_messages(command, os.environ.get(DEBUG_VARIABLE) == "1", keep_traceback=True):
        main()


def end(command: str, message: str, status: int, same_everywhere: bool = False) -> NoReturn:
    """
    End the process with one message; `rlhf-ext` prints those of a launch, each once.

    Args:
        command (`str`):
            What the user called.
        message (`str`):
            What to say of it.
        status (`int`):
            Exit status.
        same_everywhere (`bool`, *optional*, defaults to `False`):
            Whether every process of the run says it: without `rlhf-ext` the first one alone prints it then.
    """
    line, rank = f"{command}: {message}", os.environ.get("RANK", "0")
    folder = os.environ.get(ERRORS_VARIABLE)
    if folder is not None and Path(folder).is_dir():
        Path(folder, f"{rank}.json").write_text(json.dumps(line), encoding="utf-8")
    elif rank == "0" or not same_everywhere:
        print(line, file=sys.stderr)
    sys.exit(status)


def messages_of(folder: Path) -> list[str]:
    """
    What the processes of a launch left in the folder named by `RLHF_EXT_ERRORS`, each message once.

    Args:
        folder (`Path`):
            That folder.

    Returns:
        `list[str]`: the messages, with their processes where these differ.
    """
    processes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.json"), key=lambda path: int(path.stem)):
        processes.setdefault(json.loads(path.read_text(encoding="utf-8")), []).append(int(path.stem))
    if len(processes) < 2:
        return list(processes)
    return [f"[process {', '.join(map(str, ranks))}] {message}" for message, ranks in processes.items()]


def _message(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is not installed here; `rlhf-ext env` lists what is"
    remedy = _REMEDIES.get(error.errno or 0) if isinstance(error, OSError) else None
    if isinstance(error, OSError) and (remedy or error.filename is not None):
        # A write that fails does not say which file it was.
        name = "" if error.filename is None else f": {str(error.filename)!r}"
        return f"{error.strerror}{name}{f'; {remedy}.' if remedy else ''}"
    text = str(error).strip()
    if isinstance(error, _INPUT_ERRORS) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _kept(error: Exception) -> str:
    with tempfile.NamedTemporaryFile("w", prefix="rlhf-ext-", suffix=".txt", delete=False, encoding="utf-8") as file:
        file.write("".join(traceback.format_exception(error)))
    return file.name


def _raised_on_purpose(error: Exception) -> bool:
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(_PACKAGE)
