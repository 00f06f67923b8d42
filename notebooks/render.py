"""
Runs the notebooks with the real model and writes their pages, `docs/notebooks/*.md`:

    python notebooks/render.py [NAME ...] [--reuse]

What was executed stays in `build/notebooks`.
"""

import argparse
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from nbformat import NotebookNode

from rlhf_ext.demo.model import bundled_model

HERE = Path(__file__).resolve().parent
PAGES = HERE.parent / "docs" / "notebooks"
EXECUTED = HERE.parent / "build" / "notebooks"
MODEL = "SmolLM2-135M-Instruct"


def execute(notebook: NotebookNode, name: str) -> NotebookNode:
    """
    Run a notebook in an empty folder, which is removed.

    Args:
        notebook (`NotebookNode`): The notebook; it is not changed.
        name (`str`): Its name, for the lines that say how far it is.

    Returns:
        `NotebookNode`: The same with outputs.

    Raises:
        CellExecutionError: If a cell raises.
    """
    running = nbformat.from_dict(notebook)
    with tempfile.TemporaryDirectory() as folder:
        for cell in running.cells:
            # The weights that a package carries instead of those of the Hub: the page needs no network.
            if "parameters" in cell.metadata.get("tags", []) and "MODEL = " in cell.source:
                bundled_model(Path(folder, MODEL))
                cell.source += f"\nMODEL = {MODEL!r}"
        client = NotebookClient(
            running,
            timeout=None,
            kernel_name="python3",
            resources={"metadata": {"path": folder}},
            on_cell_start=lambda cell_index, **_: print(f"{name}: cell {cell_index + 1} of {len(running.cells)}"),
        )
        client.execute()
    return with_outputs(notebook, running)


def with_outputs(notebook: NotebookNode, executed: NotebookNode) -> NotebookNode:
    """
    A notebook with the outputs of another.

    Args:
        notebook (`NotebookNode`): The cells.
        executed (`NotebookNode`): As many code cells, with outputs.
    """
    done = nbformat.from_dict(notebook)
    code, ran = ([cell for cell in each.cells if cell.cell_type == "code"] for each in (done, executed))
    for cell, other in zip(code, ran, strict=True):
        cell.outputs, cell.execution_count = other.outputs, other.execution_count
    return done


def executed_before(notebook: NotebookNode, name: str) -> NotebookNode:
    """
    A notebook with the outputs of its last execution: its prose may have changed since, its code not.

    Args:
        notebook (`NotebookNode`): The notebook.
        name (`str`): Its name.

    Raises:
        SystemExit: If the code differs.
    """
    executed = nbformat.read(EXECUTED / f"{name}.ipynb", as_version=4)
    now, then = ([cell.source for cell in each.cells if cell.cell_type == "code"] for each in (notebook, executed))
    if now != then:
        raise SystemExit(f"{name}: the code has changed since it was executed. Leave --reuse out.")
    return with_outputs(notebook, executed)


def page(notebook: NotebookNode, name: str) -> str:
    """
    The page of an executed notebook, Markdown with HTML where an output is that.

    Args:
        notebook (`NotebookNode`): With outputs.
        name (`str`): Its name.
    """
    shown = nbformat.from_dict(notebook)
    for cell in shown.cells:
        if cell.cell_type == "code":
            # Of a bar that was taken away when it was full.
            cell.outputs = [each for each in cell.outputs if each.get("data", {}).get("text/html") != ""]
        for output in cell.get("outputs", []):
            if "text/html" in output.get("data", {}):
                # HTML ends for Markdown at an empty line, and after a whole element, where what is indented is code.
                lines = re.sub(r"\n\s*\n", "\n", output.data["text/html"].strip())
                output.data["text/html"] = f"<div>\n{lines}\n</div>"
    body, _ = MarkdownExporter(template_file=str(HERE / "page.md.j2")).from_notebook_node(shown)
    note = (
        f"*Run from top to bottom on two CPU cores. To run it yourself: [{name}.ipynb](../../notebooks/{name}.ipynb).*"
    )
    return f"{note}\n\n{body.strip()}\n"


def main() -> None:
    """Entry point."""
    names = sorted(path.stem for path in HERE.glob("*.ipynb"))
    parser = argparse.ArgumentParser(description="Run the notebooks and write their pages.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="of a notebook; all, if none is given")
    parser.add_argument("--reuse", action="store_true", help="outputs of the last execution, for changed prose")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(names):
        parser.error(f"{', '.join(sorted(unknown))}: no such notebook. There are {', '.join(names)}.")
    if not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"  # DeepSpeed says so otherwise.
    # For `!rlhf-ext`, which is installed beside this interpreter.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    for folder in (PAGES, EXECUTED):
        folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or names:
        notebook = nbformat.read(HERE / f"{name}.ipynb", as_version=4)
        if arguments.reuse:
            done = executed_before(notebook, name)
        else:
            done = execute(notebook, name)
            nbformat.write(done, EXECUTED / f"{name}.ipynb")
        (PAGES / f"{name}.md").write_text(page(done, name), encoding="utf-8")


if __name__ == "__main__":
    main()
