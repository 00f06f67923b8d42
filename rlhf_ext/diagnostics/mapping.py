"""Which keys of a log are which canonical metrics."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import NamedTuple

from .formats import Source
from .keys import CANONICAL, STEP_KEYS, Derivation, Framework, plain_key, recognise
from .record import METRICS
from .survey import Survey

# Logged by everyone, and nothing to diagnose.
_BOOKKEEPING = (
    *STEP_KEYS,
    "epoch",
    "episode",
    "eps",
    "num_tokens",
    "total_flos",
    "step_time",
    "_*",
    "time/*",
    "timing_*",
    "perf/*",
    "train_loss",
    "*runtime",
    "*_per_second",
    "eval_model_preparation_time",
)


class Column(NamedTuple):
    """
    A canonical metric and where it comes from.

    Args:
        name (`str`): Canonical name.
        keys (`tuple[str]`): Keys of the log; the mean is taken where there are several.
        factor (`float`): To the canonical unit.
        provenance (`str`): `""` for exact, `"derived"` or `"approximate"`.
        reason (`str`): Why it is not exact.
    """

    name: str
    keys: tuple[str, ...]
    factor: float = 1.0
    provenance: str = ""
    reason: str = ""


@dataclass(frozen=True)
class KeyMap:
    """
    How the keys of a log are read.

    Args:
        framework (`Framework`): The table in use.
        columns (`tuple[Column]`): What is taken from a key.
        derived (`tuple[Derivation]`): What is computed from several.
        unused (`dict[str, str]`): Key of the log -> why it is left out.
        unmapped (`tuple[str]`): Keys that mean nothing here.
        anchor (`str`, *optional*): Key that comes once a rollout.
    """

    framework: Framework
    columns: tuple[Column, ...]
    derived: tuple[Derivation, ...]
    unused: Mapping[str, str]
    unmapped: tuple[str, ...]
    anchor: str | None


def map_keys(survey: Survey, source: Source, given: Mapping[str, str], path: str) -> KeyMap:
    """
    Tell the framework from the keys of a log, and choose a key for each metric.

    Args:
        survey (`Survey`): The first reading of the log.
        source (`Source`): The log.
        given (`dict[str, str]`): Canonical name -> key that the user names; wins over the framework's table.
        path (`str`): For messages.

    Raises:
        ValueError: If no framework logs these keys and none were given, or a given name or key does not exist.
    """
    present = {plain_key(key) for key in survey.counts}
    framework = CANONICAL if source.canonical else recognise(present)
    chosen = _given(given, present)
    if framework is None and not chosen:
        shown = ", ".join(sorted(present - set(STEP_KEYS))[:12])
        if not shown:
            raise ValueError(f"{path} ({source.kind}) holds no number besides the step.")
        raise ValueError(
            f"{path} ({source.kind}): no framework known here logs these keys: {shown}. Say which key is which metric, "
            "as in --key score_mean=reward --key kl_ref_seq=kl; the names are in rlhf_ext.diagnostics.METRICS."
        )
    return key_map(framework or Framework("keys given by the user", (), {}), present, chosen)


def key_map(framework: Framework, present: set[str], chosen: Mapping[str, str]) -> KeyMap:
    """
    Choose a key for each metric.

    Args:
        framework (`Framework`): Whose table is read.
        present (`set[str]`): Plain keys of the log.
        chosen (`dict[str, str]`): Canonical name -> plain key that wins over the table.
    """
    columns = {name: Column(name, (key,)) for name, key in chosen.items()}
    for name, candidates in framework.keys.items():
        keys = _first_match(candidates, present)
        if keys and name not in columns:
            columns[name] = _column(framework, name, keys)
    derived = tuple(d for d in framework.derived if d.name not in columns and set(d.keys) <= present)
    used = {key for column in columns.values() for key in column.keys} | {key for d in derived for key in d.keys}
    unused = {key: why for key, why in framework.unused.items() if key in present - used}
    for name, candidates in framework.keys.items():
        if name in columns:
            others = {key for pattern in candidates for key in _matches(pattern, present)} - used
            unused |= {key: f"{', '.join(columns[name].keys)} is used for {name}" for key in sorted(others)}
    unmapped = sorted(key for key in present - used - set(unused) if not _is_bookkeeping(key))
    anchor = next(
        (columns[name].keys[0] for name in ("score_mean", "kl_ref_seq", "kl_ref_tok") if name in columns), None
    )
    return KeyMap(framework, tuple(columns.values()), derived, unused, tuple(unmapped), anchor)


def _given(given: Mapping[str, str], present: set[str]) -> dict[str, str]:
    chosen = {name: plain_key(key) for name, key in given.items()}
    for name, key in chosen.items():
        if name not in METRICS:
            close = get_close_matches(name, METRICS, n=3)
            raise ValueError(f"{name!r} is no metric; {_close(close)}the names are {', '.join(METRICS)}.")
        if key not in present:
            close, some = get_close_matches(key, present, n=3), sorted(present)
            shown = ", ".join(some[:10]) + (f" and {len(some) - 10} more" if len(some) > 10 else "")
            raise ValueError(f"the log has no key {key!r} for {name}; {_close(close)}its keys are {shown}.")
    return chosen


def _close(names: list[str]) -> str:
    return f"near it are {', '.join(names)}; " if names else ""


def _first_match(candidates: tuple[str, ...], present: set[str]) -> tuple[str, ...]:
    return next((keys for pattern in candidates if (keys := _matches(pattern, present))), ())


def _matches(pattern: str, present: set[str]) -> tuple[str, ...]:
    if "*" in pattern:
        return tuple(sorted(key for key in present if fnmatchcase(key, pattern)))
    return (pattern,) if pattern in present else ()


def _column(framework: Framework, name: str, keys: tuple[str, ...]) -> Column:
    factor = framework.scale.get(keys[0], 1.0)
    why = framework.approximate.get(keys[0], "")
    if why:
        return Column(name, keys, factor, "approximate", why)
    if len(keys) > 1:
        return Column(name, keys, factor, "derived", f"mean of {len(keys)} keys")
    return Column(name, keys, factor)


def _is_bookkeeping(key: str) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in _BOOKKEEPING)
