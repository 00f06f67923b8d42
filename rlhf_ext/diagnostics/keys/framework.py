"""The table of a framework."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple


class Derivation(NamedTuple):
    """
    A metric that follows from others of the same row.

    Args:
        name (`str`): Canonical name of what comes out.
        keys (`tuple[str]`): Keys that go in, all of them needed.
        formula (`Callable`): From their values to the result, or `None` where it does not exist.
        reason (`str`): The formula in words.
        provenance (`str`): `"derived"`, or `"approximate"` where the formula is.
    """

    name: str
    keys: tuple[str, ...]
    formula: Callable[..., float | None]
    reason: str
    provenance: str = "derived"


@dataclass(frozen=True)
class Framework:
    """
    Keys of a framework, at the versions in its name.

    Args:
        name (`str`): Framework and versions.
        signatures (`tuple[frozenset[str]]`): Sets of keys; one of them wholly there is enough.
        keys (`dict[str, tuple[str]]`):
            Canonical name -> keys, the best first; a `*` stands for any text, and the mean over all that match is taken.
        scale (`dict[str, float]`): Key -> factor to the canonical unit; 1 where it is not named.
        approximate (`dict[str, str]`): Key -> why its numbers are biased.
        unused (`dict[str, str]`): Key -> why it is left out though it looks like one of ours.
        derived (`tuple[Derivation]`): What follows from several keys; only where nothing better is logged.
        notes (`tuple[str]`): What one should know of every log of this framework.
    """

    name: str
    signatures: tuple[frozenset[str], ...]
    keys: Mapping[str, tuple[str, ...]]
    scale: Mapping[str, float] = field(default_factory=dict)
    approximate: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    derived: tuple[Derivation, ...] = ()
    notes: tuple[str, ...] = ()


def signature(*keys: str) -> frozenset[str]:
    """Keys that together tell a framework."""
    return frozenset(keys)
