"""
Links to files of the project that are no pages lead somewhere on a forge and nowhere on the site: there they are text.

Equations become MathML when the site is built, so that a page loads no script for them: `$inline$`, `$$block$$`, and a
fence called `math`. GitHub renders both too.
"""

import posixpath
import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>')
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', flags=re.DOTALL)


def on_config(config: Any) -> Any:
    """Register the fence; YAML could name the function only if this folder were a package."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences.append({"name": "math", "class": "math", "format": _equation})
    return config


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Take links out of `docs` away."""
    folder = posixpath.dirname(page.file.src_uri)

    def inside(found: re.Match[str]) -> str:
        return found[1] if posixpath.normpath(posixpath.join(folder, found[2])).startswith("..") else found[0]

    return _LINK.sub(inside, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Render what `pymdownx.arithmatex` has marked."""
    html = _BLOCK.sub(lambda found: _equation(unescape(found[1])), html)
    return _INLINE.sub(lambda found: convert(unescape(found[1])), html)


def _equation(source: str, *_: Any, **__: Any) -> str:
    return f'<div class="math">{convert(source, display="block")}</div>'
