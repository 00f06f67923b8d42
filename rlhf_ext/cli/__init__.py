"""The command `rlhf-ext`. What a command needs is imported when it runs, so that `--help` costs nothing."""

import argparse
import sys
from collections.abc import Sequence
from itertools import pairwise

from ..version import __version__
from . import check, completions, demo, diagnose, env, migrate, plan, training
from .exits import errors_as_messages
from .parser import CommandParser, accept_both_spellings, commands_of, help_formatter, not_taken

_EPILOG = """\
exit status:
  0  done
  1  a finding, or something failed while it ran
  2  wrong input
  130, 143  stopped by Ctrl-C or SIGTERM; `ppo` saves a checkpoint first

Errors are one message; --debug, with any command, prints the traceback.
"""
# Values of the setting `debug` of transformers, which is not this program's option.
_DEBUG_SETTINGS = {"underflow_overflow", "tpu_metrics_debug"}


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Args:
        arguments (sequence of `str`, *optional*):
            Command and options; by default those of the process.
    """
    debug, rest = _take_debug(list(sys.argv[1:] if arguments is None else arguments))
    # What a command does not know is a setting of the recipe, which the recipe's parser judges.
    parser = make_parser()
    known, settings = parser.parse_known_args(rest or ["--help"])
    known.debug = debug
    # The demo alone runs long in this process; the training programs keep their tracebacks themselves.
    with errors_as_messages(f"rlhf-ext {known.command}", debug, keep_traceback=known.command == "demo"):
        if settings and not known.takes_settings:
            raise ValueError(not_taken(commands_of(parser)[known.command], settings[0]))
        known.run(known, settings)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = CommandParser(
        prog="rlhf-ext",
        description="RLHF with PPO for the Hugging Face stack. `rlhf-ext COMMAND --help` says more.",
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("--version", action="version", version=f"rlhf-ext {__version__}")
    parser.set_defaults(takes_settings=False)
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    training.add_commands(commands)
    for module in (demo, plan, check, diagnose, migrate, env, completions):
        module.add_command(commands)
    accept_both_spellings(parser)
    return parser


def _take_debug(arguments: list[str]) -> tuple[bool, list[str]]:
    """Whether `--debug` stands among the arguments, and the others."""
    own = [a == "--debug" and b not in _DEBUG_SETTINGS for a, b in pairwise([*arguments, ""])]
    return any(own), [a for a, is_own in zip(arguments, own, strict=True) if not is_own]
