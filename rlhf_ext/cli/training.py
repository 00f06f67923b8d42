"""`rlhf-ext sft | reward | ppo`: the training programs, through accelerate's launcher."""

import argparse
import sys
from functools import partial
from importlib import import_module
from typing import Any

from .parser import help_formatter
from .settings import PROGRAMS, Settings
from .shipped import launch_path, recipe_path

_SUMMARIES = {
    "sft": "fine-tune a language model on texts or conversations",
    "reward": "train a reward model on preference pairs, and measure it",
    "ppo": "align a language model with PPO against a reward model",
}
_EPILOG = "Other options, as --num_processes 2, are accelerate's. Exit status: rlhf-ext -h"


def add_commands(commands: Any) -> None:
    """Add `sft`, `reward` and `ppo` to the subparsers of the command line."""
    for name, settings in PROGRAMS.items():
        _add_command(commands, name, settings, _SUMMARIES[name])


def _add_command(commands: Any, name: str, settings: Settings, summary: str) -> None:
    parser = commands.add_parser(
        name,
        help=summary,
        usage=f"rlhf-ext {name} [--config RECIPE] [--SETTING VALUE ...] [OPTIONS]",
        description=settings.to_text(),
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("--config", metavar="RECIPE", help="YAML file of settings, or name of a shipped one")
    parser.add_argument(
        "--accelerate_config", metavar="NAME", help="how to launch: YAML file, or ddp, zero2, zero3, ..."
    )
    # The text above speaks of it.
    parser.add_argument("--help-all", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=partial(run, name), takes_settings=True)


def run(name: str, arguments: argparse.Namespace, settings: list[str]) -> None:
    """
    Launch a training program.

    Args:
        name (`str`):
            `"sft"`, `"reward"` or `"ppo"`.
        arguments (`argparse.Namespace`):
            What the command knows.
        settings (`list[str]`):
            Settings of the recipe and options of the launcher.
    """
    command = f"rlhf-ext {name}"
    if arguments.help_all:
        sys.argv = [command, "--help"]
        import_module(f"rlhf_ext.programs.{name}").main()
    if not arguments.config and not settings:
        raise ValueError(
            f"nothing to run: give a recipe with --config, or settings with their names; {command} --help."
        )
    recipe = ["--config", recipe_path(arguments.config, name)] if arguments.config else []
    config = launch_path(arguments.accelerate_config) if arguments.accelerate_config else None
    from .launch import launch

    launch(f"rlhf_ext.programs.{name}", [*recipe, *settings], config, command, arguments.debug)
