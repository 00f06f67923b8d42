"""`rlhf-ext completions`: a script with which a shell completes commands, options and names."""

import argparse
from typing import Any

from .parser import commands_of, help_formatter
from .settings import PROGRAMS
from .shipped import launch_names, recipe_names

SHELLS = ("bash", "zsh", "fish")
_PATHS = {
    "critic_model", "dataset_name", "html", "model_name_or_path", "output", "output_dir", "path", "reward_model", "script",
}  # fmt: skip
_DESCRIPTION = """\
Print a script that completes commands, settings, and the names of recipes and launch configurations. Write it to

  bash  ~/.local/share/bash-completion/completions/rlhf-ext
  zsh   ~/.zfunc/_rlhf-ext, or another folder of $fpath
  fish  ~/.config/fish/completions/rlhf-ext.fish

such as with: rlhf-ext completions zsh > ~/.zfunc/_rlhf-ext
"""


def add_command(commands: Any) -> None:
    """Add `completions` to the subparsers of the command line."""
    parser = commands.add_parser(
        "completions",
        help="a script that completes this command line in your shell",
        description=_DESCRIPTION,
        epilog="Exit status: 0, or 2 for a shell that is not one of these.",
        formatter_class=help_formatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="shell to write it for")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """
    Print the script.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
    """
    import shtab

    print(shtab.complete(complete_parser(shtab.FILE), shell=arguments.shell))


def complete_parser(file: Any) -> argparse.ArgumentParser:
    """
    The parser of the command line with the settings of the programs, which it otherwise leaves to them.

    Args:
        file (`dict`):
            What shtab takes as "complete a path".
    """
    from . import make_parser

    parser = make_parser()
    for name, command in commands_of(parser).items():
        program = "ppo" if name in ("check", "plan") else name
        known = PROGRAMS[program].names() if program in PROGRAMS else []
        for setting in sorted(set(known) - {action.dest for action in command._actions}):
            command.add_argument(f"--{setting}", metavar="VALUE")
        actions: list[Any] = command._actions
        for action in actions:
            if action.help == argparse.SUPPRESS:  # too many for --help
                action.help = ""
            if action.dest == "config":
                action.choices = recipe_names(program)
            elif action.dest == "accelerate_config":
                action.choices = launch_names()
            elif action.dest in _PATHS:
                action.complete = file
    return parser
