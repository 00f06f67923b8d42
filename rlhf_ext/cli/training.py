"""`rlhf-ext sft | reward | ppo`: the training programs, through accelerate's launcher."""

import argparse
import sys
from functools import partial
from importlib import import_module
from typing import Any

from .settings import PPO, REWARD, SFT, Settings
from .shipped import launch_path, recipe_path

PROGRAMS = {
    "sft": (SFT, "fine-tune a language model on texts or conversations"),
    "reward": (REWARD, "train a reward model on preference pairs, and measure it"),
    "ppo": (PPO, "align a language model with PPO against a reward model"),
}
_EPILOG = "Other options go to `accelerate launch`, such as --num_processes 2. Exit status: rlhf-ext --help."


def add_commands(commands: Any) -> None:
    """Add `sft`, `reward` and `ppo` to the subparsers of the command line."""
    for name, (settings, summary) in PROGRAMS.items():
        _add_command(commands, name, settings, summary)


def _add_command(commands: Any, name: str, settings: Settings, summary: str) -> None:
    parser = commands.add_parser(
        name,
        help=summary,
        usage=f"rlhf-ext {name} [--config RECIPE] [--SETTING VALUE ...] [--accelerate_config NAME]",
        description=settings.to_text(),
        epilog=_EPILOG,
        formatter_class=partial(argparse.RawDescriptionHelpFormatter, width=100, max_help_position=28),
    )
    parser.add_argument("--config", metavar="RECIPE", help="a recipe of settings: YAML file, or a shipped one by name")
    parser.add_argument(
        "--accelerate_config", metavar="NAME", help="how to launch: YAML file, or ddp, zero2, zero3, ..."
    )
    parser.add_argument("--help-all", action="store_true", help="every setting, with its default")
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
    recipe = ["--config", recipe_path(arguments.config)] if arguments.config else []
    config = launch_path(arguments.accelerate_config) if arguments.accelerate_config else None
    from .launch import launch

    launch(f"rlhf_ext.programs.{name}", [*recipe, *settings], config, command, arguments.debug)
