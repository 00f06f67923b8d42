"""Types and ranges of settings that are numbers."""

import math
import types
from collections.abc import Iterable
from dataclasses import fields
from numbers import Integral, Real
from typing import Any, Union, get_args, get_origin, get_type_hints

from transformers import TrainingArguments


def check_numbers(args: Any, not_negative: Iterable[str], at_least_one: Iterable[str]) -> None:
    """
    Refuse a text where a setting is a number (YAML reads `1e-6` as a text), and a number out of its range.

    Args:
        args (`dataclass`):
            Settings, as they were given.
        not_negative (iterable of `str`):
            Settings that are finite and not negative, where they are set.
        at_least_one (iterable of `str`):
            Settings that are 1 or more, where they are set.

    Raises:
        ValueError: For the first such setting.
    """
    hints = get_type_hints(type(args))
    for field in fields(args):
        value = getattr(args, field.name, None)
        # Trainer's own settings take None for "none", whatever their type says.
        may_be_none = field.default is None or field.name in TrainingArguments.__dataclass_fields__
        if value is not None or not may_be_none:
            _check_kind(field.name, value, hints[field.name])
    for name in not_negative:
        if not 0 <= (getattr(args, name) or 0) < math.inf:
            raise ValueError(f"{name} must be a number and not negative, got {getattr(args, name)}.")
    for name in at_least_one:
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}.")


def _check_kind(name: str, value: Any, hint: Any) -> None:
    kinds = set(get_args(hint)) if get_origin(hint) in (Union, types.UnionType) else {hint}
    if not kinds <= {int, float, type(None)} or (value is None and type(None) in kinds):
        return
    wanted, kind = (Real, "a number") if float in kinds else (Integral, "a whole number")
    if not isinstance(value, wanted):
        yaml = " YAML takes 1e-6 for a text: write 1.0e-6." if _is_number(value) else ""
        raise ValueError(f"{name} must be {kind}, got {value!r} ({type(value).__name__}).{yaml}")


def _is_number(text: Any) -> bool:
    try:
        return isinstance(text, str) and math.isfinite(float(text))
    except ValueError:
        return False
