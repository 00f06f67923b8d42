"""`rlhf-ext diagnose`: what went wrong in a finished run, why, and what to change."""

import argparse
import sys
import textwrap
from dataclasses import fields
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
Read the log of a run, whoever made it, and name the failure, its causes and the cures.

PATH is a file, or a folder that holds one: trainer_state.json, diagnostics.jsonl, any JSONL or CSV, TensorBoard event
files, .wandb files and exports of W&B, trackio's project files, console and file logs of verl.
"""
_EPILOG = "Exit status: 0, or 1 if --fail-on is given and such a finding was made, or 2 if PATH cannot be read."
_ALIASES = {"kl_target": ("--target",), "kl_unit": ("--unit",)}
_TYPES: dict[str, Any] = {"int | None": int, "float | None": float, "str | None": str}


def add_command(commands: Any) -> None:
    """Add `diagnose` to the subparsers of the command line."""
    from ..diagnostics.record import RunSettings

    parser = commands.add_parser(
        "diagnose",
        help="what went wrong in a finished run, why, and what to change",
        usage="rlhf-ext diagnose PATH [--html FILE] [--fail-on warn|critical] [--SETTING VALUE ...]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    listed = textwrap.fill("  ".join(f"--{field.name}" for field in fields(RunSettings)), 100, break_on_hyphens=False)
    group = parser.add_argument_group("settings of the run that the log does not hold", listed)
    for field in fields(RunSettings):
        choices = ("sequence", "token") if field.name == "kl_unit" else None
        names = (f"--{field.name}", *_ALIASES.get(field.name, ()))
        group.add_argument(
            *names, dest=field.name, type=_TYPES[str(field.type)], choices=choices, help=argparse.SUPPRESS
        )
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
        raise ValueError("--target needs --unit sequence or --unit token.")
    settings = RunSettings(**{field.name: getattr(arguments, field.name) for field in fields(RunSettings)})
    keys = dict(_key(text) for text in arguments.key)
    diagnosis = diagnose(arguments.path, settings, keys=keys, run=arguments.run_name)
    if arguments.html:
        Path(arguments.html).write_text(diagnosis.to_html(), encoding="utf-8")
    print(diagnosis.to_json() if arguments.json else diagnosis.to_text(), end="")
    worst = diagnosis.worst
    if arguments.fail_on and worst is not None and worst >= Severity[arguments.fail_on.upper()]:
        sys.exit(1)


def _key(text: str) -> tuple[str, str]:
    name, equals, key = text.partition("=")
    if not equals or not name or not key:
        raise ValueError(f"--key takes METRIC=KEY, such as score_mean=reward, not {text!r}.")
    return name, key
