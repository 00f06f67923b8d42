"""`notebooks/render.py`: what is shown of an executed notebook, and when outputs may be taken again."""

import runpy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbconvert")
v4 = nbformat.v4

RENDER = Path(__file__).parents[2] / "notebooks" / "render.py"


@pytest.fixture
def render():
    return runpy.run_path(str(RENDER))


def executed(code="a = 1", *outputs):
    cell = v4.new_code_cell(code, outputs=list(outputs))
    notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Title"), cell, v4.new_markdown_cell("Then.")])
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def test_a_page_holds_cells_and_what_they_put_out(render):
    table = "<style>\n.a { margin: 0 }\n</style>\n    <div>\n\n      <p>x</p>\n    </div>"
    outputs = [
        v4.new_output("stream", text="\x1b[31mtwo\x1b[0m\n\nlines\n"),
        v4.new_output("display_data", {"text/html": table, "text/plain": "<HTML>"}),
        v4.new_output("execute_result", {"text/plain": "42"}),
    ]
    page = render["page"](executed("a = 1\n\n\nb = 2", *outputs), "name")
    assert "```python\na = 1\n\n\nb = 2\n```" in page
    shown = page[page.index("<!-- output -->") : page.index("<!-- end of output -->")]
    assert "```text\ntwo\n\nlines\n```" in shown and "```text\n42\n```" in shown
    assert "<div>\n<style>\n.a { margin: 0 }\n</style>\n    <div>\n      <p>x</p>\n    </div>\n</div>" in shown
    assert "<HTML>" not in page
    assert page.index("# Title") < page.index("a = 1") < page.index("42") < page.index("Then.")


def test_outputs_are_taken_again_for_new_prose_and_not_for_new_code(render, tmp_path):
    render["executed_before"].__globals__["EXECUTED"] = tmp_path
    nbformat.write(executed("a = 1", v4.new_output("stream", text="said")), tmp_path / "name.ipynb")
    notebook = executed("a = 1")
    notebook.cells[0].source = "# Another"
    assert "# Another" in render["page"](render["executed_before"](notebook, "name"), "name")
    assert "said" in render["page"](render["executed_before"](notebook, "name"), "name")
    with pytest.raises(SystemExit, match="the code has changed"):
        render["executed_before"](executed("a = 2"), "name")
