"""The Python of the README and of every page runs as it is printed, page by page, on tiny models."""

import ast
import importlib

import pytest
from doc_context import Context, make_log_files
from doc_pages import LANGUAGES, PAGES, ROOT, blocks

# Of these pages only the imports are looked at here.
READ_ONLY = {
    "docs/migration.md": "each block is a script with a command line, run by tests/migration/test_moved_scripts.py",
}


def python_of(page):
    if page.parent == ROOT / "docs" / "notebooks":
        return []  # Made of notebooks, which tests/notebooks runs.
    return [block for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("page", [page for page in PAGES if python_of(page)], ids=lambda p: str(p.relative_to(ROOT)))
def test_python_of_a_page_runs(
    page, tmp_path, monkeypatch, tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path
):
    monkeypatch.chdir(tmp_path)
    make_log_files(tmp_path)
    context = Context(tiny_policy_path, tiny_reward_path, tiny_reward_adapter_path)
    for block in python_of(page):
        if str(page.relative_to(ROOT)) in READ_ONLY:
            check_imports(block.text)
        else:
            context.run(block.text, f"{page.relative_to(ROOT)}:{block.line}")


def check_imports(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_the_ten_lines_of_the_readme_train(tmp_path, monkeypatch, tiny_policy_path, tiny_reward_path):
    monkeypatch.chdir(tmp_path)
    block = python_of(ROOT / "README.md")[0]
    statements = ast.unparse(ast.parse(block.text)).splitlines()
    context = Context(tiny_policy_path, tiny_reward_path, "")
    context.run(block.text, "README.md")
    rows = context.names["trainer"].state.log_history
    (row,) = [row for row in rows if "objective/score" in row]
    assert row["kl/target"] == 6.0
    assert row["kl/ref"] == pytest.approx(0.0, abs=1e-5)
    assert len(block.text.splitlines()) <= 12 and len(statements) <= 10


def test_a_name_that_a_block_does_not_make_is_refused():
    with pytest.raises(AssertionError, match="uses `nothing`"):
        Context("", "", "").run("print(nothing)", "page.md:1")


def test_every_fence_names_a_language_that_the_tests_know():
    for page in PAGES:
        for block in blocks(page):
            assert block.language in LANGUAGES, f"{page}:{block.line}"
