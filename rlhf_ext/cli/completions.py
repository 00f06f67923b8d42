"""`rlhf-ext completions`: a script with which a shell completes commands, options and names."""

import argparse
from collections.abc import Callable
from typing import Any

from .shipped import launch_names, recipe_names
from .training import PROGRAMS

SHELLS = ("bash", "zsh", "fish")
_NAMES: dict[str, Callable[[], list[str]]] = {"config": recipe_names, "accelerate_config": launch_names}
_PATHS = {
    "critic_model", "dataset_name", "html", "model_name_or_path", "output", "output_dir", "path", "reward_model", "script",
}  # fmt: skip
_DESCRIPTION = """\
Print a script that completes commands, settings, and the names of recipes and launch configurations. To install it:

  bash   rlhf-ext completions bash > ~/.local/share/bash-completion/completions/rlhf-ext
  zsh    rlhf-ext completions zsh > ~/.zfunc/_rlhf-ext        (a folder of $fpath)
  fish   rlhf-ext completions fish > ~/.config/fish/completions/rlhf-ext.fish
"""


def add_command(commands: Any) -> None:
    """Add `completions` to the subparsers of the command line."""
    parser = commands.add_parser(
        "completions",
        help="a script that completes this command line in your shell",
        description=_DESCRIPTION,
        epilog="Exit status: 0, or 2 for a shell that is not one of these.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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

    parser: Any = make_parser()
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    for name, command in commands.choices.items():
        taken = {action.dest for action in command._actions}
        for setting in sorted(set(_settings_of(name)) - taken):
            command.add_argument(f"--{setting}", metavar="VALUE")
        for action in command._actions:
            if action.help == argparse.SUPPRESS:  # too many for --help
                action.help = ""
            if action.dest in _NAMES:
                action.choices = _NAMES[action.dest]()
            elif action.dest in _PATHS:
                action.complete = file
    return parser


def _settings_of(command: str) -> list[str]:
    if command in ("check", "plan"):
        command = "ppo"
    return PROGRAMS[command][0].names() if command in PROGRAMS else []
