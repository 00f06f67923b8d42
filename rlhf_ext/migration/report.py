"""Prints what a script needs, and the tables of `docs/migration.md`."""

import textwrap
from collections.abc import Iterator, Sequence

from .behaviour import BEHAVIOUR, DEFAULTS, Default
from .names import CLASSES, KEPT_ARGUMENTS, METHODS, METRICS, OLD_ARGUMENTS, OLD_NAMES, UNKNOWN, Change
from .script import Finding, Migration

_WIDTH = 100
_TABLES = {
    "settings": ("`PPOConfig(...)` of TRL", OLD_NAMES),
    "arguments": ("`PPOTrainer(...)` of TRL", OLD_ARGUMENTS | KEPT_ARGUMENTS),
    "classes": ("`trl`", CLASSES),
    "methods": ("the trainer of TRL", METHODS),
    "metrics": ("logged by TRL", METRICS),
}


def as_text(migration: Migration, path: str, source: str) -> str:
    """
    The changes that a script needs, line by line.

    Args:
        migration ([`Migration`]):
            What was found.
        path (`str`):
            The script.
        source (`str`):
            Its text.
    """
    if migration.era is None:
        return f"{path}: no PPO of TRL in it, nothing to change.\n"
    count = len(migration.findings)
    lines = [f"{path}: PPO of TRL {migration.era}; {count} place{'' if count == 1 else 's'} to change.", ""]
    lines += _by_line(migration, source.splitlines())
    unknown = [f"{finding.name} (line {finding.line})" for finding in migration.findings if _is_unknown(finding)]
    if unknown:
        lines += ["", *textwrap.wrap(f"Not known here, so look at these yourself: {', '.join(unknown)}.", _WIDTH)]
    lines += ["", "What no name says:"]
    lines += _wrapped_items(_defaults(migration))
    lines += _wrapped_items(f"{title}. {text}" for title, text in BEHAVIOUR.items())
    return "\n".join([*lines, "", "docs/migration.md shows both kinds of script, moved.", ""])


def as_data(migration: Migration, path: str) -> dict[str, object]:
    """The same as plain data."""
    return {
        "path": path,
        "era": migration.era,
        "changes": [vars(finding) for finding in migration.findings],
        "defaults": _defaults(migration) if migration.era else [],
    }


def as_markdown(table: str) -> str:
    """
    A table of old names.

    Args:
        table (`str`):
            `"settings"`, `"arguments"`, `"classes"`, `"methods"`, `"metrics"`, or `"defaults"`.
    """
    if table == "defaults":
        rows = [
            (
                f"`{d.setting}`",
                f"`{d.now}`",
                ", ".join(f"`{value}` ({era})" for era, value in d.before.items()),
                d.note,
            )
            for d in DEFAULTS
        ]
        return _markdown(("setting", "here", "TRL", "why"), rows)
    title, names = _TABLES[table]
    return _markdown((title, "here", "what differs"), [_row(name, change) for name, change in names.items()])


def _by_line(migration: Migration, code: list[str]) -> Iterator[str]:
    line = 0
    explained: set[str] = set()
    for finding in migration.findings:
        if finding.line != line:
            line = finding.line
            yield f"{line:>4} | {code[line - 1].strip()}"
        yield from _wrap(_what_became(finding), "       ")
        if finding.differs and finding.differs not in explained:
            explained.add(finding.differs)
            yield from _wrap(finding.differs, "           ")


def _what_became(finding: Finding) -> str:
    if finding.name == finding.new:
        return f"{finding.name}: keeps its name"
    return f"{finding.name}: {finding.new}" if _is_unknown(finding) else f"{finding.name} -> {finding.new}"


def _is_unknown(finding: Finding) -> bool:
    return finding.new.startswith(UNKNOWN)


def _row(name: str, change: Change) -> tuple[str, str, str]:
    return f"`{name}`", change.new if " " in change.new or change.new == "gone" else f"`{change.new}`", change.differs


def _markdown(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    return (
        "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in [head, ("---",) * len(head), *rows])
        + "\n"
    )


def _defaults(migration: Migration) -> list[str]:
    changed = [d for d in DEFAULTS if migration.era in d.before and not migration.settings & {d.setting, *d.old_names}]
    return [_default(d, d.before[str(migration.era)]) for d in changed]


def _default(default: Default, before: object) -> str:
    return f"{default.setting} is not set in the script: {before} in TRL, {default.now} here. {default.note}".strip()


def _wrapped_items(items: Iterator[str] | list[str]) -> list[str]:
    return [line for item in items for line in textwrap.wrap(f"- {item}", _WIDTH, subsequent_indent="  ")]


def _wrap(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=f"{indent}    ", break_long_words=False
    )
