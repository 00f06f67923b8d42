"""Reads docstrings of the Hugging Face format as Google's, which griffe knows, and the help of settings as docstrings."""

import ast
import re
from typing import Any

import griffe

# The default stands in a column of its own, which griffe fills from the signature.
_TYPE = re.compile(r"^(\s+(?:\*{0,2}\w+)(?:, \*{0,2}\w+)*) \((.+)\):", flags=re.MULTILINE)
# Names that share an entry: they, and the lines that are indented below them.
_SEVERAL = re.compile(r"^( +)(\w+(?:, \w+)+)((?: \(.+\))?:.*(?:\n\1 +.*)*)", flags=re.MULTILINE)
_OPTIONAL = re.compile(r",? ?\*optional\*|, defaults to `[^`]*`")
# Indented, they are code already.
_FORMULAS = re.compile(r"(?<=\n\n)(?:    `[^`\n]+`\n)+")
_REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?![\[(])")


class HuggingFaceDocstrings(griffe.Extension):
    """Rewrites what griffe has read from the source; nothing is imported."""

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Rewrite every docstring of the package."""
        places: dict[str, set[str]] = {}
        objects = list(_members(pkg))
        for item in objects:
            if item.is_class or item.is_function:
                places.setdefault(item.name, set()).add(item.path)
                owner = item.parent
                if owner is not None and owner.is_class:
                    places.setdefault(f"{owner.name}.{item.name}", set()).add(item.path)
        for item in objects:
            if item.docstring is None and item.is_attribute:
                item.docstring = _help_of(item)
            if item.docstring is not None:
                item.docstring.value = _rewritten(item.docstring.value, places)


def _members(item: Any) -> Any:
    yield item
    for member in item.members.values():
        if not member.is_alias:
            yield from _members(member)


def _help_of(attribute: Any) -> griffe.Docstring | None:
    """The help of a setting, `field(..., metadata={"help": ...})`."""
    if attribute.value is None or "metadata" not in str(attribute.value):
        return None
    call = ast.parse(str(attribute.value), mode="eval").body
    metadata = next(word.value for word in call.keywords if word.arg == "metadata")  # type: ignore[attr-defined]
    entries = zip(metadata.keys, metadata.values, strict=True)
    text = next((value for key, value in entries if key.value == "help"), None)
    return griffe.Docstring(str(text.value), parent=attribute) if isinstance(text, ast.Constant) else None


def _rewritten(text: str, places: dict[str, set[str]]) -> str:
    text = _SEVERAL.sub(lambda found: "\n".join(f"{found[1]}{name}{found[3]}" for name in found[2].split(", ")), text)
    text = _TYPE.sub(lambda found: f"{found[1]} ({_OPTIONAL.sub('', found[2]).replace('`', '').strip(', ')}):", text)
    text = text.replace(" ():", ":")
    text = re.sub(r"^(\s+)`(\w+(?:\[.*\])?)`: ", r"\1\2: ", text, flags=re.MULTILINE)
    text = _FORMULAS.sub(lambda found: found[0].replace("`", ""), text)
    return _REFERENCE.sub(lambda found: _link(found[1], places), text)


def _link(name: str, places: dict[str, set[str]]) -> str:
    """A link that is dropped where the object has no page."""
    found = places.get(".".join(name.split(".")[-2:])) or places.get(name.split(".")[-1], set())
    shown = f"<code>{name.split('.')[-1]}</code>"
    return f'<autoref optional identifier="{next(iter(found))}">{shown}</autoref>' if len(found) == 1 else shown
