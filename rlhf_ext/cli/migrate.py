"""`rlhf-ext migrate`: what a script for TRL's old PPO needs in order to run here."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from .parser import help_formatter

_DESCRIPTION = """\
Read a script that uses PPO of TRL, of 0.11 and earlier (a loop around `step`) or 0.12 to 1.12, and print every old name
with its line, what it is now, and what behaves differently. The script is neither run nor changed.
"""
_EPILOG = "Exit status: 0 if there is nothing to change, 1 if there is, 2 if SCRIPT cannot be read."


def add_command(commands: Any) -> None:
    """Add `migrate` to the subparsers of the command line."""
    parser = commands.add_parser(
        "migrate",
        help="what a script for TRL's old PPO needs in order to run here",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=help_formatter,
    )
    parser.add_argument("script", metavar="SCRIPT", help="Python file or notebook")
    parser.add_argument("--json", action="store_true", help="print plain data")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, _: list[str]) -> None:
    """
    Print the changes.

    Args:
        arguments (`argparse.Namespace`):
            What the command knows.
    """
    from ..migration import as_data, as_text, read_script

    path = Path(arguments.script)
    source = _source(path)
    try:
        migration = read_script(source)
    except SyntaxError as error:
        raise ValueError(f"{str(path)!r} is not Python 3: line {error.lineno}: {error.msg}") from error
    text = (
        json.dumps(as_data(migration, str(path)), indent=2)
        if arguments.json
        else as_text(migration, str(path), source)
    )
    print(text.rstrip())
    sys.exit(1 if migration.findings else 0)


def _source(path: Path) -> str:
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give one script.")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {str(path)!r} in {Path.cwd()}; give a Python file or a notebook.")
    if path.suffix in (".yaml", ".yml"):
        # Many a recipe is Python too, with annotations and nothing else.
        raise ValueError(
            f"{str(path)!r} is a recipe: `rlhf-ext check --config {path}` says what its old names are now."
        )
    try:
        text = path.read_text(encoding="utf-8")
        return _cells(text) if path.suffix == ".ipynb" else text
    except (UnicodeDecodeError, KeyError, json.JSONDecodeError) as error:
        kind = "a notebook" if path.suffix == ".ipynb" else "a text in UTF-8"
        raise ValueError(f"{str(path)!r} is not {kind}: {error}") from error


def _cells(text: str) -> str:
    """The code of a notebook; lines that only IPython understands become comments."""
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return "\n".join(
        "# " + line if line.lstrip().startswith(("%", "!")) else line for cell in cells for line in cell.splitlines()
    )
