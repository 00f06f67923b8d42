"""Text from models and data in Markdown that a Hub page renders: shown as it is, never as markup. Standard library only."""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape

_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
_MARKUP = re.compile(r"([\\`*_\[\]|~#!$])")


def visible(text: str) -> str:
    """The text with what has no picture (control characters, changes of direction, lone surrogates) as codes."""
    return "".join(f"\\u{ord(c):04x}" if _is_hidden(c) else c for c in text)


def _is_hidden(character: str) -> bool:
    if unicodedata.category(character) in ("Cc", "Cs"):
        return character not in "\n\t"
    return unicodedata.bidirectional(character) in _DIRECTIONS


def cut(text: str, limit: int) -> str:
    """The text, of which a long one ends after `limit` characters with a sign of it."""
    return text if len(text) <= limit else f"{text[:limit]} [...]"


def inline(text: object) -> str:
    """One line of plain text, in a sentence or a cell of a table."""
    return _MARKUP.sub(r"\\\1", escape(" ".join(visible(str(text)).split()), quote=False))


def block(text: str, limit: int = 1200) -> str:
    """
    Text of several lines as it is, in a `<pre>`: what is inside is no Markdown, and nothing inside can end it.

    Args:
        text (`str`): The text.
        limit (`int`, *optional*, defaults to `1200`): Characters after which it is cut.
    """
    return f"<pre>{escape(visible(cut(text, limit)), quote=False)}</pre>"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; its cells are plain text."""
    lines = ["| " + " | ".join(map(inline, header)) + " |", "|" + "---|" * len(header)]
    return "\n".join([*lines, *("| " + " | ".join(map(inline, row)) + " |" for row in rows)])
