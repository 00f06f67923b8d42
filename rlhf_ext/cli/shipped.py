"""The recipes and launch configurations that ship with the package, by short name."""

from pathlib import Path

_ALIASES = {"demo": "smollm2-135m-demo-ppo"}


def recipe_names() -> list[str]:
    """Short names of the shipped recipes."""
    return [*_ALIASES, *_names("recipes")]


def launch_names() -> list[str]:
    """Short names of the shipped configurations of accelerate."""
    return _names("accelerate")


def recipe_path(name: str) -> str:
    """
    Path of a recipe.

    Args:
        name (`str`):
            A file; or a shipped recipe as `demo`, `demo.yaml` or `recipes/demo.yaml`, where there is no such file.

    Raises:
        ValueError: If it is neither.
    """
    return _path(name, "recipes", "--config", recipe_names())


def launch_path(name: str) -> str:
    """
    Path of a configuration of accelerate.

    Args:
        name (`str`):
            A file; or a shipped one as `zero3`, `zero3.yaml` or `accelerate/zero3.yaml`, where there is no such file.

    Raises:
        ValueError: If it is neither.
    """
    return _path(name, "accelerate", "--accelerate_config", launch_names())


def _path(name: str, kind: str, option: str, known: list[str]) -> str:
    if Path(name).expanduser().is_file():
        return str(Path(name).expanduser())
    short = name.removeprefix(f"{kind}/").removesuffix(".yaml")
    if short in known:
        return str(_folder(kind) / f"{_ALIASES.get(short, short)}.yaml")
    raise ValueError(
        f"{option}: there is no file {name!r} in {Path.cwd()}, and none of that name ships with rlhf-ext. Give a path, or "
        f"one of {', '.join(known)}."
    )


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _folder(kind: str) -> Path:
    from ..configs import __path__ as places

    # The package's files lie unpacked: programs and launchers take paths.
    return Path(places[0]) / kind
