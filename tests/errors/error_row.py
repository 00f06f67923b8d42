"""A row of the table of wrong inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple


class Row(NamedTuple):
    """
    A wrong input.

    Args:
        name: What is wrong.
        act: Makes it happen.
        error: What is raised.
        words: What the message holds: the thing, its value and the remedy.
        loads: Whether a model has to be loaded before it can show.
    """

    name: str
    act: Callable[[Any], Any]
    error: type[Exception]
    words: tuple[str, ...]
    loads: bool = False
