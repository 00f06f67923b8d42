"""What is done with a command that a page tells a reader to type: it runs, or the parser that it would meet reads it."""

import argparse
import configparser
import importlib
import re
import runpy
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from doc_pages import ROOT, Command

# Why a program is not run but only read by its parser, which refuses an option or a file that does not exist.
PARSED_ONLY = {
    "rlhf-ext sft": "trains",
    "rlhf-ext reward": "trains",
    "rlhf-ext ppo": "trains",
    "rlhf-ext demo": "trains for a quarter of an hour",
    "accelerate": "trains",
    "torchrun": "trains",
    "python -m": "modules of this project train or measure",
    "python benchmarks": "benchmarks measure, some for hours",
    "make": "installs, trains or runs the tests",
    "pip": "installs",
    "pytest": "would run tests within a test",
}
# What a page calls a file or a choice of the reader's, and what stands there in the tests.
PLACES = {
    "COMMAND": "ppo",
    "OUTPUT_FOLDER": "outputs/my-run",
    "RECIPE.yaml": "recipe.yaml",
    "my_ppo.py": "script.py",
}
# With these no model is fetched; the settings are still those of the recipe.
OFFLINE = ["--use_cpu", "true", "--bf16", "false"]
FOREIGN = {"git", "cd", "export", "hf", "ls", "source"}


class Read(BaseException):
    """The parser accepted the command line; the program has not begun. No handler of errors may take it."""


class Shell:
    """
    Runs or reads the commands of one page, in order.

    Args:
        policy, reward (`str`): Folders of tiny models, for what only reads configs.
        monkeypatch: Of pytest.
    """

    def __init__(self, policy: str, reward: str, monkeypatch) -> None:
        self.models = ["--model_name_or_path", policy, "--reward_model", reward]
        self.monkeypatch = monkeypatch
        self.variables: dict[str, str] = {}

    def check(self, command: Command) -> str:
        """Run or read a command; the entry of `PARSED_ONLY` that it falls under, or an empty string."""
        words = [self._filled(word) for word in command.words]
        words = words[: words.index(">")] if ">" in words else words
        program, arguments = words[0], words[1:]
        if program in FOREIGN:
            return ""
        if program == "python" and arguments[0] == "-c":
            output = subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
            self.variables[f"${command.variable}"] = output.strip()
            return ""
        kind = " ".join(words[:2]) if program == "rlhf-ext" else program
        if program == "python":
            kind = "python -m" if arguments[0] == "-m" else "python benchmarks"
        getattr(self, f"check_{program.replace('-', '_')}")(arguments)
        return kind if kind in PARSED_ONLY else ""

    def _filled(self, word: str) -> str:
        for name, value in self.variables.items():
            word = word.replace(name, value)
        return PLACES.get(word, word)

    def check_rlhf_ext(self, arguments: list[str]) -> None:
        from rlhf_ext import cli

        if arguments[0] == "plan":
            arguments = [*arguments, *self.models]
        if arguments[0] == "demo":
            cli.make_parser().parse_args(arguments)
            return
        with self._launches_nothing():
            try:
                cli.main(arguments)
            except SystemExit as end:
                # 1 is a finding, of these commands.
                allowed = (0, 1) if arguments[0] in ("check", "diagnose", "migrate") else (0,)
                assert end.code in (*allowed, None), f"rlhf-ext {arguments} ended with {end.code}"
            except Read:
                pass

    def check_accelerate(self, arguments: list[str]) -> None:
        from accelerate.commands.launch import launch_command_parser

        if arguments[0] != "launch":
            importlib.import_module(f"accelerate.commands.{arguments[0]}")
            return
        _read_program(launch_command_parser().parse_args(arguments[1:]))

    def check_torchrun(self, arguments: list[str]) -> None:
        from torch.distributed.run import get_args_parser

        _read_program(get_args_parser().parse_args(arguments))

    def check_python(self, arguments: list[str]) -> None:
        is_module = arguments[0] == "-m"
        _run_until_read(arguments[1] if is_module else arguments[0], arguments[1 + is_module :], is_module)

    def check_make(self, arguments: list[str]) -> None:
        text = (ROOT / "Makefile").read_text(encoding="utf-8")
        for word in arguments:
            name, is_variable, _ = word.partition("=")
            pattern = rf"^{name} \?=" if is_variable else rf"^{name}:"
            assert re.search(pattern, text, flags=re.MULTILINE), f"make knows no {name}"

    def check_pip(self, arguments: list[str]) -> None:
        from pip._internal.commands import create_command

        # Whoever runs the tests may have settings of pip's own.
        options, wanted = create_command(arguments[0], isolated=True).parse_args(arguments[1:])
        assert all(Path(path).is_file() for path in getattr(options, "constraints", None) or ())
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg", encoding="utf-8")
        for requirement in wanted:
            for extra in re.findall(r"(?:\.|rlhf[-_]ext)\[(.*)\]", requirement):
                assert set(extra.split(",")) <= set(setup["options.extras_require"])

    def check_pytest(self, arguments: list[str]) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("-k", dest="word", default="")
        parser.add_argument("-s", action="store_true")
        parser.add_argument("paths", type=Path, nargs="+")
        asked = parser.parse_args(arguments)
        for path in asked.paths:
            files = [path] if path.is_file() else list(path.rglob("test_*.py"))
            names = [
                name for file in files for name in re.findall(r"def (test_\w+)", file.read_text(encoding="utf-8"))
            ]
            assert any(asked.word in name for name in names), f"no test of {path} is called {asked.word}"

    @contextmanager
    def _launches_nothing(self):
        with self.monkeypatch.context() as patch:
            patch.setattr("accelerate.commands.launch.launch_command", _read_program)
            yield


def _read_program(launched: argparse.Namespace) -> None:
    """Have the program that a launcher would start read its command line."""
    if getattr(launched, "config_file", None):
        assert Path(launched.config_file).is_file(), f"there is no {launched.config_file}"
    _run_until_read(launched.training_script, [*launched.training_script_args, *OFFLINE], launched.module)


def _run_until_read(name: str, arguments: list[str], is_module: bool) -> None:
    """Run a program up to the point where its parser has accepted the command line."""
    from rlhf_ext import RecipeParser

    kept = [(owner, method, getattr(owner, method)) for owner, method in _readers(RecipeParser)]
    argv = sys.argv
    try:
        for owner, method, original in kept:
            setattr(owner, method, _then_stop(original))
        sys.argv = [name, *arguments]
        if is_module:
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(name, run_name="__main__")
    except Read:
        return
    except SystemExit as end:
        assert "--help" in arguments and not end.code, f"{name} {arguments} ended with {end.code}"
        return
    finally:
        sys.argv = argv
        for owner, method, original in kept:
            setattr(owner, method, original)
    raise AssertionError(f"{name} ran to its end: it reads no command line")


def _readers(recipe_parser):
    return (argparse.ArgumentParser, "parse_args"), (recipe_parser, "parse_args_and_config")


def _then_stop(original):
    def read(*args, **kwargs):
        original(*args, **kwargs)
        raise Read

    return read
