"""What the README, CONTRIBUTING.md and the pages of `docs` tell a reader to type."""

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
LANGUAGES = {"python", "bash", "yaml", "json", "math", "text", ""}
"""Of fences; one of another name, such as `sh`, would escape the tests."""
PROGRAMS = {"rlhf-ext", "python", "accelerate", "torchrun", "make", "pip", "pytest", "mkdocs"}
"""What a command in a text, or in an indented block, begins with."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its page, first line, language and text."""

    page: Path
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A command line as words, without comments; and the variable that its output goes to."""

    page: Path
    line: int
    words: tuple[str, ...]
    variable: str | None = None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line} {shlex.join(self.words)}"


@cache
def blocks(page: Path) -> tuple[Block, ...]:
    """Every fenced block of a page; an indented one that begins with a program is one of bash."""
    found = []
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "fence":
            found.append(Block(page, token.map[0] + 1, token.info.strip(), token.content))
        elif token.type == "code_block":
            language = "bash" if token.content.split()[0] in PROGRAMS else ""
            found.append(Block(page, token.map[0] + 1, language, token.content))
    return tuple(found)


def commands(page: Path) -> list[Command]:
    """Every command of the page's bash blocks, and of its text: `code` that begins with a program and goes on."""
    found = [command for block in blocks(page) if block.language == "bash" for command in _of_block(block)]
    for token in MarkdownIt().enable("table").parse(page.read_text(encoding="utf-8")):
        for part in token.children or ():
            words = shlex.split(part.content) if part.type == "code_inline" and _is_command(part.content) else []
            # The name of a command alone, in a sentence: there must be such a one.
            words += ["--help"] if len(words) == 2 and words[0] in ("rlhf-ext", "accelerate") else []
            if words:
                found.append(Command(page, token.map[0] + 1 if token.map else 0, tuple(words)))
    return found


def _is_command(text: str) -> bool:
    first, _, rest = text.partition(" ")
    return first in PROGRAMS and bool(rest) and "..." not in rest


def _of_block(block: Block) -> list[Command]:
    found = []
    for number, line in enumerate(block.text.replace("\\\n", " ").splitlines(), start=block.line + 1):
        assigned = re.fullmatch(r"(\w+)=\$\((.*)\)", line)
        for part in re.split(r"\s+(?:&&|\|)\s+", assigned[2] if assigned else line):
            words = shlex.split(part, comments=True)
            if words:
                found.append(Command(block.page, number, tuple(words), assigned[1] if assigned else None))
    return found
