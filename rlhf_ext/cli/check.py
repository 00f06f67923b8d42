"""`rlhf-ext check`: what is wrong with a recipe, before anything is loaded."""

import argparse
import json
import os
import sys
import textwrap
import warnings
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .numbers import whole
from .parser import help_formatter
from .shipped import recipe_path

if TYPE_CHECKING:
    from ..diagnostics import Finding

_DESCRIPTION = """\
Read the settings of a PPO recipe for what cannot work, or works otherwise than it looks: the unit of the KL target, a
sampler that is not the distribution that is scored, dropout, a controller too slow for the run, and so on. No model is
loaded and nothing is fetched.

Every setting of the recipe can be overridden with --NAME VALUE, such as --kl_target 6.
"""
_EPILOG = "Exit status: 0, or 1 for a finding of WARN or above, or 2 if the recipe cannot be read."


def add_command(commands: Any) -> None:
    """Add `check` to the subparsers of the command line."""
    parser = commands.add_parser(
        "check",
        help="what is wrong with a recipe, before anything is loaded",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("--config", metavar="RECIPE", help="recipe of PPO: a file, or a shipped one by name")
    parser.add_argument("--num_gpus", type=whole(1), default=1, metavar="N", help="GPUs of the run (default: 1)")
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.set_defaults(run=run, takes_settings=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """
    Print what is wrong with a recipe.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
        overrides (`list[str]`):
            Settings of the recipe on the command line.
    """
    from ..diagnostics import Severity

    if not arguments.config and not overrides:
        raise ValueError("nothing to check: give a recipe with --config, or settings with their names.")
    findings, notes = _preflight(arguments, overrides)
    if arguments.json:
        print(json.dumps({"findings": [finding.as_dict() for finding in findings], "notes": notes}, indent=2))
    else:
        print(_as_text(findings, notes))
    if any(finding.severity >= Severity.WARN for finding in findings):
        sys.exit(1)


def _preflight(arguments: argparse.Namespace, overrides: list[str]) -> "tuple[list[Finding], list[str]]":
    recipe = recipe_path(arguments.config, "ppo") if arguments.config else None
    if find_spec("trl") is None:
        from .light_check import preflight_of_text

        return preflight_of_text(recipe, overrides, arguments.num_gpus)
    # A dataset is read for its length: no bar of that.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from ..programs.ppo import PPOScriptArguments
    from ..trainer.recipe_check import preflight_of_recipe

    # Deprecated names of settings are the recipe's affair when it is run.
    warnings.simplefilter("ignore", FutureWarning)
    options = ["--config", recipe] if recipe else []
    return preflight_of_recipe(PPOScriptArguments, [*options, *overrides], arguments.num_gpus)


def _as_text(findings: "list[Finding]", notes: list[str]) -> str:
    lines = [] if findings else ["No finding."]
    for finding in findings:
        lines += _wrap(f"{finding.severity.name} {finding.causes[0].name}: {finding.summary}", "")
        lines += _wrap(f"Change: {finding.causes[0].remedy}", "    ")
    return "\n".join([*lines, *(line for note in notes for line in _wrap(f"Note: {note}", ""))])


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=indent, subsequent_indent=f"{indent}    ", break_long_words=False)
