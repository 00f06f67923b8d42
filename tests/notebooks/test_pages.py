"""The pages of the notebooks, docs/notebooks, are those of `make notebooks`, and of the notebooks as they are now."""

import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OUTPUT = re.compile(r"<!-- output -->.*?<!-- end of output -->", flags=re.DOTALL)


def page_of(path):
    return (ROOT / "docs" / "notebooks" / f"{path.stem}.md").read_text(encoding="utf-8")


def lines_of(text):
    return [line for line in text.splitlines() if line.strip()]


def source_of(cell):
    return cell.source if cell.cell_type == "markdown" else f"```python\n{cell.source}\n```"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_has_the_code_and_the_prose_of_its_notebook(path):
    """If this fails: `make notebooks`, or `python notebooks/render.py --reuse` where only prose has changed."""
    note, *shown = lines_of(OUTPUT.sub("", page_of(path)))
    assert path.name in note
    cells = nbformat.read(path, as_version=4).cells
    assert shown == lines_of("\n".join(map(source_of, cells)))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_page_shows_a_run(path):
    outputs = "".join(OUTPUT.findall(page_of(path)))
    assert 'class="rollouts"' in outputs and "Traceback" not in outputs
    # Paths of the machine that it was made on.
    assert not re.search(r"/(tmp|home|root|Users|work|usr|opt)/", outputs)
    assert len(page_of(path)) < 300_000
