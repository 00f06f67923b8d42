"""`rlhf-ext diagnose`: what went wrong in a finished run, why, and what to change."""

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..kl_control import CONTROLLER_KINDS, KL_UNITS
from .numbers import real, whole
from .parser import help_formatter

_DESCRIPTION = """\
Read the log of a run, whoever made it, and name the failure, its causes and the cures.

PATH is a file, or a folder that holds one: trainer_state.json, diagnostics.jsonl, any JSONL or CSV, TensorBoard event
files, .wandb files and exports of W&B, trackio's project files, console and file logs of verl.
"""
_EPILOG = "Exit status: 0, or 1 if --fail-on is given and such a finding was made, or 2 if PATH cannot be read."
_COUNT, _AMOUNT = {"type": whole(at_least=1)}, {"type": real(at_least=0)}
_POSITIVE, _OR_OFF = {"type": real(above=0)}, {"type": real(above=0, or_infinite=True)}
# How argparse reads each field of RunSettings.
_FIELDS: dict[str, dict[str, Any]] = {
    "planned_rollouts": _COUNT,
    "kl_target": _POSITIVE,
    "kl_unit": {"choices": KL_UNITS},
    "kl_controller": {"choices": CONTROLLER_KINDS},
    "beta": _AMOUNT,
    "num_epochs": _COUNT,
    "rollout_size": _COUNT,
    "max_completion_length": _COUNT,
    "epsilon": {"type": real(above=0, below=1)},
    "learning_rate": _AMOUNT,
    "critic_learning_rate": _AMOUNT,
    "critic_warmup_rollouts": {"type": whole(at_least=0)},
    "max_grad_norm": _AMOUNT,
    "entropy_coef": {"type": real()},
    "value_clip_range": _OR_OFF,
    "score_clip": _OR_OFF,
    "missing_eos_penalty": _AMOUNT,
    "temperature": _POSITIVE,
    "dtype": {"choices": ("float32", "bfloat16", "float16")},
}


def add_command(commands: Any) -> None:
    """Add `diagnose` to the subparsers of the command line."""
    from ..diagnostics.record import RunSettings

    parser = commands.add_parser(
        "diagnose",
        help="what went wrong in a finished run, why, and what to change",
        usage="rlhf-ext diagnose PATH [--html FILE] [OPTIONS] [--SETTING VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("path", metavar="PATH", help="log of the run")
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.add_argument("--html", metavar="FILE", help="write one HTML page with plots")
    parser.add_argument("--fail-on", choices=("warn", "critical"), help="exit with 1 from this severity on")
    parser.add_argument("--run", dest="run_name", metavar="NAME", help="which run, where the log holds several")
    parser.add_argument(
        "--key",
        action="append",
        default=[],
        metavar="METRIC=KEY",
        help="key of the log for a metric, such as score_mean=reward; may be repeated",
    )
    listed = "  ".join(f"--{field.name}" for field in fields(RunSettings))
    group = parser.add_argument_group("settings of the run that the log does not hold", listed)
    for field in fields(RunSettings):
        group.add_argument(f"--{field.name}", help=argparse.SUPPRESS, **_FIELDS[field.name])
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """
    Print the diagnosis of a run.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
    """
    from ..diagnostics import RunSettings, Severity, diagnose

    if arguments.kl_target is not None and arguments.kl_unit is None:
        raise ValueError(f"--kl_target {arguments.kl_target:g} needs --kl_unit sequence or --kl_unit token.")
    if arguments.kl_unit is not None and arguments.kl_target is None:
        raise ValueError(f"--kl_unit {arguments.kl_unit} is the unit of --kl_target, which is not given: give both.")
    if arguments.html is not None:
        _check_page(Path(arguments.html))
    settings = RunSettings(**{field.name: getattr(arguments, field.name) for field in fields(RunSettings)})
    keys = dict(_key(text) for text in arguments.key)
    diagnosis = diagnose(arguments.path, settings, keys=keys, run=arguments.run_name)
    if arguments.html is not None:
        Path(arguments.html).write_text(diagnosis.to_html(), encoding="utf-8")
    print((diagnosis.to_json() if arguments.json else diagnosis.to_text()).rstrip("\n"))
    worst = diagnosis.worst
    if arguments.fail_on and worst is not None and worst >= Severity[arguments.fail_on.upper()]:
        sys.exit(1)


def _check_page(path: Path) -> None:
    """Before the log is read, which may take long."""
    if path.is_dir():
        raise ValueError(f"--html: {str(path)!r} is a folder; give a file, such as {str(path / 'page.html')!r}.")
    if not path.parent.is_dir():
        raise ValueError(
            f"--html: there is no folder {str(path.parent)!r} for the page; make it, or give another file."
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ValueError(f"--html: {str(path)!r} may not be written; give a file elsewhere.")


def _key(text: str) -> tuple[str, str]:
    name, equals, key = text.partition("=")
    if not equals or not name or not key:
        raise ValueError(f"--key takes METRIC=KEY, such as score_mean=reward, not {text!r}.")
    return name, key
