"""The parser of the commands: errors as one message, help that fits the terminal, and options in both spellings."""

import argparse
import difflib
import re
import shutil
import textwrap
from typing import Any, NoReturn

from .exits import WRONG_INPUT, end

NEGATIVE_NUMBER = re.compile(r"-\.?\d")
"""What argparse takes for a value since Python 3.14; before, `-1e-3` was an option to it."""
_WIDEST = 100


class ParagraphFormatter(argparse.RawDescriptionHelpFormatter):
    """[`~argparse.RawDescriptionHelpFormatter`] that wraps paragraphs to its width; lists, which are indented, stay."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip("\n").split("\n\n")
        return "\n\n".join(_list(p, indent) if "\n " in f"\n{p}" else _wrapped(p, width, indent) for p in paragraphs)


def _list(lines: str, indent: str) -> str:
    return "\n".join(indent + line for line in lines.split("\n"))


def _wrapped(paragraph: str, width: int, indent: str) -> str:
    return textwrap.fill(paragraph, width, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)


def help_formatter(prog: str) -> argparse.HelpFormatter:
    """The formatter of every command: as wide as the terminal, up to 100 columns."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return ParagraphFormatter(prog, max_help_position=28, width=width)


class CommandParser(argparse.ArgumentParser):
    """
    [`~argparse.ArgumentParser`] whose error is one line without the usage, and whose options cannot be abbreviated: a
    setting of a recipe may begin like one.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False, **kwargs})
        self._negative_number_matcher = NEGATIVE_NUMBER

    def error(self, message: str) -> NoReturn:
        """End with one line."""
        end(self.prog, f"error: {message}; `{self.prog} --help` says what it takes.", WRONG_INPUT)


def commands_of(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """
    The parsers of the commands.

    Args:
        parser (`argparse.ArgumentParser`):
            That of the whole command line.
    """
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: command for action in actions for name, command in action.choices.items()}


def not_taken(command: argparse.ArgumentParser, argument: str) -> str:
    """
    What to say of an argument that a command does not know.

    Args:
        command (`argparse.ArgumentParser`):
            Parser of the command.
        argument (`str`):
            The first that is left over.
    """
    lists = f"`{command.prog} --help` lists what it takes."
    if argument.startswith("-"):
        options = [name for name in command._option_string_actions if name.startswith("--")]
        similar = difflib.get_close_matches(argument.partition("=")[0], options, n=1)
        return f"unknown option {argument}{f' (did you mean {similar[0]}?)' if similar else ''}; {lists}"
    takes = [str(action.metavar or action.dest) for action in command._actions if not action.option_strings]
    if not takes:
        return f"{argument!r} is one argument too many: {command.prog} takes options alone; {lists}"
    return f"{argument!r} is one argument too many: {command.prog} takes one {takes[0]}. Call it once for each."


def accept_both_spellings(parser: argparse.ArgumentParser) -> None:
    """
    Take `--kl-placement` for `--kl_placement` and the reverse, as the settings of a recipe are taken. The help and the
    completion go on showing one of them.

    Args:
        parser (`argparse.ArgumentParser`):
            With its commands.
    """
    for command in commands_of(parser).values():
        accept_both_spellings(command)
    for action in parser._actions:
        for name in action.option_strings:
            words = name.removeprefix("--")
            for other in (words.replace("_", "-"), words.replace("-", "_")) if words != name else ():
                parser._option_string_actions.setdefault(f"--{other}", action)
