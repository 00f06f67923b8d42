"""The command `rlhf-ext`. What a command needs is imported when it runs, so that `--help` costs nothing."""

import argparse
import sys
from collections.abc import Sequence

from ..version import __version__
from . import check, diagnose, plan


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run the command line.

    Args:
        arguments (sequence of `str`, *optional*):
            Command and options; by default those of the process.
    """
    parser = argparse.ArgumentParser(prog="rlhf-ext", description="RLHF with PPO for the Hugging Face stack.")
    parser.add_argument("--version", action="version", version=f"rlhf-ext {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    check.add_command(commands)
    diagnose.add_command(commands)
    plan.add_command(commands)
    # What `check` and `plan` do not know is a setting of the recipe, which the recipe's parser judges.
    known, settings = parser.parse_known_args(arguments)
    try:
        known.run(known, settings)
    except (OSError, ValueError, TypeError) as error:
        print(f"rlhf-ext {known.command}: error: {error}", file=sys.stderr)
        sys.exit(2)
