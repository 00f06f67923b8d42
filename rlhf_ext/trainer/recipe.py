"""Reads the recipe and the command line of a training program."""

import os
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, Namespace
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from trl import ModelConfig, TrlParser

from ..cli.exits import COMMAND_VARIABLE, WRONG_INPUT, end
from ..cli.parser import NEGATIVE_NUMBER, ParagraphFormatter
from ..cli.recipe_file import read_settings_file
from ..cli.settings import explain_unknown


class _HelpFormatter(ArgumentDefaultsHelpFormatter, ParagraphFormatter):
    """One spelling of a setting, and its choices in the text beside it: some have forty."""

    def _format_action_invocation(self, action: Action) -> str:
        if action.nargs == 0 or not action.option_strings:
            return super()._format_action_invocation(action)
        return f"{action.option_strings[0]} VALUE{' ...' if action.nargs in ('+', '*') else ''}"

    def _get_help_string(self, action: Action) -> str | None:
        text = super()._get_help_string(action)
        return (
            text if action.choices is None else f"One of {', '.join(map(str, action.choices))}. {text or ''}".strip()
        )


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] that ends a program with one sentence where a recipe or the command line cannot be used: no such
    file, no YAML, a name that is no setting (with the one that was probably meant), values that a settings class refuses.

    Names on the command line are written out, as they are in a recipe. LoRA goes on every linear layer by default.

    Args:
        dataclass_types (`Collection[type]`):
            Settings classes of the program.
        description (`str`, *optional*):
            What the program does, for `--help`.
        explain_names (`Callable[[list[str]], str | None]`, *optional*):
            Gives the message for unknown names that it knows more about, such as [`explain_old_names`].
    """

    def __init__(
        self,
        dataclass_types: Collection[type],
        description: str | None = None,
        explain_names: Callable[[list[str]], str | None] | None = None,
    ):
        super().__init__(
            dataclass_types,
            prog=os.environ.get(COMMAND_VARIABLE),
            usage="%(prog)s [--config RECIPE.yaml] [--SETTING VALUE ...]",
            description=description,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )
        self._negative_number_matcher = NEGATIVE_NUMBER
        self.explain_names = explain_names
        if ModelConfig in dataclass_types:
            # PEFT would adapt the queries and values alone.
            self.set_defaults(lora_target_modules="all-linear")

    def parse_args_and_config(self, args: Iterable[str] | None = None) -> tuple[Any, ...]:
        """
        Read the command line, and the recipe that it names.

        Args:
            args (`Iterable[str]`, *optional*):
                Command line; by default that of the process.

        Returns:
            `tuple`: one instance of each settings class.
        """
        arguments = list(sys.argv[1:] if args is None else args)
        arguments = [part for a in arguments for part in (a.split("=", 1) if a.startswith("--config=") else [a])]
        if "--config" in arguments:
            self._check_recipe(arguments[arguments.index("--config") + 1 :])
        try:
            settings = super().parse_args_and_config(arguments)
        except ValueError as error:
            self.error(str(error))
        return settings

    def set_defaults_with_config(self, **settings: Any) -> list[str]:
        """Take the recipe's settings as defaults; a name that is no setting is refused."""
        known = {action.dest for action in self._actions}
        self._refuse_unknown([name for name in settings if name not in known])
        return super().set_defaults_with_config(**settings)

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: Namespace | None = None
    ) -> tuple[Namespace, list[str]]:
        """Parse as `argparse` does, before any settings class is made; what it does not know is refused."""
        namespace, unknown = super().parse_known_args(args, namespace)
        names = [item.removeprefix("--").split("=")[0] for item in unknown if item.startswith("--")]
        self._refuse_unknown([name.replace("-", "_") for name in names])
        if unknown:
            self.error(f"not a setting: {' '.join(unknown)}. A recipe is given with --config, a value with its --name")
        return namespace, unknown

    def error(self, message: str) -> NoReturn:
        """End with one sentence, which several processes say once."""
        end(self.prog, f"error: {message}", WRONG_INPUT, same_everywhere=True)

    def _check_recipe(self, following: list[str]) -> None:
        if not following:
            self.error("--config needs the path of a recipe")
        try:
            read_settings_file(following[0])
        except ValueError as error:
            self.error(str(error))

    def _refuse_unknown(self, names: list[str]) -> None:
        if names:
            self.error(explain_unknown(names, [action.dest for action in self._actions], self.explain_names))
