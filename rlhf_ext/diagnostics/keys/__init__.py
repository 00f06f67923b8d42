"""What each framework calls the canonical metrics, in which unit, and where its numbers cannot be trusted."""

from .framework import Derivation, Framework
from .names import STEP_KEYS, plain_key
from .others import OTHERS
from .ours import CANONICAL, OURS
from .trl import TRL
from .verl import VERL

__all__ = ["CANONICAL", "FRAMEWORKS", "STEP_KEYS", "Derivation", "Framework", "plain_key", "recognise"]

# The first whose signature is there is taken: the more particular ones stand first.
FRAMEWORKS: tuple[Framework, ...] = (CANONICAL, OURS, *TRL, *VERL, *OTHERS)


def recognise(keys: set[str]) -> Framework | None:
    """
    The framework that logs under these keys, `None` if it is not known here.

    Args:
        keys (`set[str]`): Keys of a log, one `train/` in front of a key already taken off.
    """
    for framework in FRAMEWORKS:
        if any(signature <= keys for signature in framework.signatures):
            return framework
    return None
