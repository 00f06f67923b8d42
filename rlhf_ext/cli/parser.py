"""The parser of the commands: errors as one message, and options in both spellings."""

import argparse
from typing import Any, NoReturn

from .exits import WRONG_INPUT, end


class CommandParser(argparse.ArgumentParser):
    """
    [`~argparse.ArgumentParser`] whose error is one line without the usage, and whose options cannot be abbreviated: a
    setting of a recipe may begin like one.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**{"allow_abbrev": False, **kwargs})

    def error(self, message: str) -> NoReturn:
        """End with one line."""
        end(self.prog, f"error: {message}; `{self.prog} --help` says what it takes.", WRONG_INPUT)


def accept_both_spellings(parser: argparse.ArgumentParser) -> None:
    """
    Take `--kl-placement` for `--kl_placement` and the reverse, as the settings of a recipe are taken. The help and the
    completion go on showing one of them.

    Args:
        parser (`argparse.ArgumentParser`):
            With its commands.
    """
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                accept_both_spellings(command)
        for name in action.option_strings:
            words = name.removeprefix("--")
            for other in (words.replace("_", "-"), words.replace("-", "_")) if words != name else ():
                parser._option_string_actions.setdefault(f"--{other}", action)
