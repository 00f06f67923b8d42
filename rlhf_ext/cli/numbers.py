"""Numbers on the command line, refused where they are read if they cannot be."""

import argparse
import math
from collections.abc import Callable


def whole(at_least: int, at_most: int | None = None) -> Callable[[str], int]:
    """
    What reads a whole number, for `add_argument(type=...)`.

    Args:
        at_least (`int`):
            Smallest number that is taken.
        at_most (`int`, *optional*):
            Largest.
    """
    bounds = f"of at least {at_least}" if at_most is None else f"from {at_least} to {at_most}"

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if number < at_least or (at_most is not None and number > at_most):
            raise argparse.ArgumentTypeError(f"must be a whole number {bounds}, got {text!r}")
        return number

    return read


def real(
    above: float = -math.inf, at_least: float = -math.inf, below: float = math.inf, or_infinite: bool = False
) -> Callable[[str], float]:
    """
    What reads a number, for `add_argument(type=...)`.

    Args:
        above, at_least, below (`float`, *optional*):
            Its bounds: more than, no less than, less than.
        or_infinite (`bool`, *optional*, defaults to `False`):
            Whether infinity is taken too.
    """
    named = (("above", above), ("of at least", at_least), ("below", below))
    bounds = "".join(f" {name} {bound:g}" for name, bound in named if math.isfinite(bound))
    wanted = f"must be a number{bounds.replace(' below', ' and below')}{', or inf,' if or_infinite else ','}"

    def read(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        inside = above < number < below and number >= at_least
        if not (inside or (or_infinite and number == math.inf)):
            raise argparse.ArgumentTypeError(f"{wanted} got {text!r}")
        return number

    return read
