"""`rlhf-ext plan`: the memory that a PPO run will take, before anything is loaded."""

import argparse
import json
import logging
import os
import warnings
from typing import Any

from .numbers import whole
from .parser import help_formatter
from .shipped import recipe_path

_DESCRIPTION = """\
Print the memory that a PPO recipe takes per role (policy, reference, critic, reward model) and phase (generate, score,
update), on each GPU, and which setting would lower the peak most. Only configs are read: no weights, no GPU.

Every setting of the recipe can be overridden with --NAME VALUE, such as --per_device_train_batch_size 2.
"""
_EPILOG = "Exit status: 0, or 2 if the recipe cannot be read."


def add_command(commands: Any) -> None:
    """Add `plan` to the subparsers of the command line."""
    parser = commands.add_parser(
        "plan",
        help="memory of a PPO run, per role and phase, before anything loads",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("--config", metavar="RECIPE", help="recipe of PPO: a file, or a shipped one by name")
    parser.add_argument("--num_gpus", type=whole(1), default=1, metavar="N", help="GPUs of the run (default: 1)")
    parser.add_argument("--zero_stage", type=int, default=0, choices=range(4), help="stage of ZeRO (default: 0)")
    parser.add_argument("--offload", choices=("optimizer", "all"), help="what ZeRO keeps on the host")
    parser.add_argument(
        "--prompt_length",
        type=whole(1),
        metavar="TOKENS",
        help="longest prompt; by default that of the recipe's dataset, if it is on this machine",
    )
    parser.add_argument("--json", action="store_true", help="print plain data, in bytes")
    parser.set_defaults(run=run, takes_settings=True)


def run(arguments: argparse.Namespace, overrides: list[str]) -> None:
    """
    Print the plan of a recipe.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
        overrides (`list[str]`):
            Settings of the recipe on the command line.
    """
    # No bar of the dataset that is read; and on import bitsandbytes says which fast kernels it lacks.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from ..planning.advice import changes_that_help
    from ..planning.plan import plan_memory
    from ..planning.table import as_data, as_text
    from ..programs.ppo import PPOScriptArguments
    from ..trainer.recipe_plan import read_plan_settings

    # Deprecated names of settings are the recipe's affair when it is run.
    warnings.simplefilter("ignore", FutureWarning)
    recipe = ["--config", recipe_path(arguments.config, "ppo")] if arguments.config else []
    settings, notes = read_plan_settings(
        PPOScriptArguments,
        [*recipe, *overrides],
        num_gpus=arguments.num_gpus,
        zero_stage=arguments.zero_stage,
        offload=arguments.offload,
        prompt_length=arguments.prompt_length,
    )
    plan = plan_memory(settings)
    changes = changes_that_help(plan)
    if arguments.json:
        print(json.dumps(as_data(plan, changes, notes), indent=2))
    else:
        print(as_text(plan, changes, notes))
