"""Reads YAML and JSON files of settings; what can be wrong with one is said before anything heavy is loaded."""

import json
from pathlib import Path
from typing import Any

RECIPE = "a recipe has one setting a line, such as `learning_rate: 1.0e-6`."
"""What to do about a file that is no recipe."""


def read_settings_file(path: str, option: str = "--config", remedy: str = RECIPE) -> dict[str, Any]:
    """
    The settings in a file, as YAML has them, or JSON where its name ends so.

    Args:
        path (`str`):
            The file.
        option (`str`, *optional*, defaults to `"--config"`):
            With which option it was given, for the message.
        remedy (`str`, *optional*):
            How such a file is made, for the message.

    Returns:
        `dict[str, Any]`: setting -> value.

    Raises:
        ValueError: If it is no file, neither, empty, or holds anything but settings.
    """
    check_is_file(path, option)
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if path.endswith(".json") else yaml.safe_load(text)
    except OSError as error:
        raise ValueError(f"{option}: {path!r} cannot be read ({error.strerror}); give a file that may be.") from error
    except (yaml.YAMLError, json.JSONDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.endswith(".json") else "YAML"
        raise ValueError(f"{option}: {path!r} is not {kind}: {' '.join(str(error).split())}; {remedy}") from error
    if content is None:
        raise ValueError(f"{option}: {path!r} is empty; {remedy}")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else f"{content!r}"[:60]
        raise ValueError(f"{option}: {path!r} holds {kind} and no settings; {remedy}")
    for name in content:
        if not isinstance(name, str):
            raise ValueError(f"{option}: {path!r}: {name!r} ({type(name).__name__}) is no name of a setting; {remedy}")
    return content


def check_is_file(path: str, option: str) -> None:
    """
    Refuse what is no file.

    Args:
        path (`str`):
            What was given.
        option (`str`):
            With which option, for the message.

    Raises:
        ValueError: For a folder, with the YAML files in it; and for what is not there.
    """
    if Path(path).is_dir():
        inside = sorted(str(file) for file in Path(path).glob("*.yaml"))[:10]
        raise ValueError(f"{option}: {path!r} is a folder; give {_one_of(inside)}.")
    if not Path(path).is_file():
        raise ValueError(f"{option}: there is no file {path!r} in {Path.cwd()}; give the path of a YAML file.")


def _one_of(files: list[str]) -> str:
    return f"one of {', '.join(files)}" if files else "a YAML file"
