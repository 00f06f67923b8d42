"""The recipes and launch configurations that ship with the package, by short name."""

from pathlib import Path

from .recipe_file import check_is_file, read_settings_file
from .settings import PROGRAMS

_LAUNCH = "--accelerate_config"
_ALIASES = {"demo": "smollm2-135m-demo-ppo"}


def recipe_names(program: str) -> list[str]:
    """
    Short names of the shipped recipes of a program, whose name they end with.

    Args:
        program (`str`):
            Key of `PROGRAMS`.
    """
    names = [*_ALIASES, *_names("recipes")]
    return [name for name in names if _ALIASES.get(name, name).endswith(f"-{program}")]


def launch_names() -> list[str]:
    """Short names of the shipped configurations of accelerate."""
    return _names("accelerate")


def recipe_path(name: str, program: str) -> str:
    """
    Path of a recipe.

    Args:
        name (`str`):
            A file; or a shipped recipe as `demo`, `demo.yaml` or `recipes/demo.yaml`, where there is no such file.
        program (`str`):
            Key of `PROGRAMS`, whose settings are wanted.

    Raises:
        ValueError: If it is neither, or the shipped recipe of another program.
    """
    if not Path(name).expanduser().exists():
        for other in PROGRAMS:
            if other != program and _short(name, "recipes") in recipe_names(other):
                raise ValueError(
                    f"--config: {name!r} is a recipe of `rlhf-ext {other}`; here one of `rlhf-ext {program}` is wanted: a "
                    f"path, or {', '.join(recipe_names(program))}."
                )
    return _path(name, "recipes", "--config", recipe_names(program))


def launch_path(name: str) -> str:
    """
    Path of a configuration of accelerate.

    Args:
        name (`str`):
            A file; or a shipped one as `zero3`, `zero3.yaml` or `accelerate/zero3.yaml`, where there is no such file.

    Raises:
        ValueError: If it is neither, or a file of something else.
    """
    path = _path(name, "accelerate", _LAUNCH, launch_names())
    # accelerate refuses a broken file with a traceback.
    shipped = ", ".join(launch_names())
    read_settings_file(path, _LAUNCH, f"`accelerate config` writes one; rlhf-ext ships {shipped}.")
    return path


def _path(name: str, kind: str, option: str, known: list[str]) -> str:
    path = Path(name).expanduser()
    short = _short(name, kind)
    if short in known and not path.is_file():
        return str(_folder(kind) / f"{_ALIASES.get(short, short)}.yaml")
    if not path.exists():
        raise ValueError(
            f"{option}: there is no file {name!r} in {Path.cwd()}, and none of that name ships with rlhf-ext. Give a path, "
            f"or one of {', '.join(known)}."
        )
    check_is_file(str(path), option)
    return str(path)


def _short(name: str, kind: str) -> str:
    return name.removeprefix(f"{kind}/").removesuffix(".yaml")


def _names(kind: str) -> list[str]:
    return sorted(path.stem for path in _folder(kind).glob("*.yaml"))


def _folder(kind: str) -> Path:
    from ..configs import __path__ as places

    # The package's files lie unpacked: programs and launchers take paths.
    return Path(places[0]) / kind
