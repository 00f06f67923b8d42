"""Each failure that the code can name has a page, and every cause of it stands there in the words of the code."""

import ast
import re
import sys

import pytest
import yaml
from doc_pages import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import failure_pages

FOLDER = ROOT / "docs" / "failures"
PACKAGE = ROOT / "rlhf_ext" / "diagnostics"
MODES = [*failure_pages.modes(), "X17"]


def calls(name, *files):
    """Calls of a function in the sources of the diagnostics."""
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == name:
                yield node


def texts(node):
    """Every text that an expression can be, such as both sides of a condition."""
    return {each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)}


def page(mode):
    return (FOLDER / f"{mode}.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [failure_pages.INDEX, *failure_pages.modes()])
def test_tables_are_those_of_the_code(name):
    assert failure_pages.renewed(page(name), name) == page(name), (
        "Renew them with `python benchmarks/failure_pages.py --write docs/failures`."
    )


def test_no_cause_of_the_code_is_missing():
    """Some causes depend on what is known of a run, which the page must not miss."""
    detectors = [file for file in PACKAGE.glob("*.py") if file.stem != "preflight"]
    in_code = {name for call in calls("cause", *detectors) for name in texts(call.args[0])}
    on_pages = {cause.name for mode in failure_pages.modes() for cause in failure_pages.causes_of(mode)}
    assert in_code == on_pages
    used = {
        key if (key := f"{mode}.{cause.name}") in failure_pages.CONFIRM else cause.name
        for mode in failure_pages.modes()
        for cause in failure_pages.causes_of(mode)
    }
    assert used == failure_pages.CONFIRM.keys()


def test_findings_on_settings_are_those_of_the_code():
    in_code = {
        (name, call.args[1].attr)
        for call in calls("_finding", PACKAGE / "preflight.py")
        for name in texts(call.args[0]) - {"small"}
    }
    assert set(re.findall(r"^\| `([\w-]+)` \| (\w+) \|", page("X17"), flags=re.MULTILINE)) == in_code


@pytest.mark.parametrize("mode", MODES)
def test_a_page_says_what_it_looks_like_why_how_to_confirm_and_what_to_change(mode):
    text = page(mode)
    assert text.startswith(f"# {mode}: ")
    for part in ("**What it looks like.**", "**Why.**", "| confirm it |", " change |"):
        assert part in text
    for image in re.findall(r"!\[.+?\]\((.+?)\)", text):
        assert (FOLDER / image).is_file()
    # A plot there is, or the page says why there is none.
    assert "![" in text or re.search(r"^\*(No run of the lab|Found before a run)", text, flags=re.MULTILINE)


def test_every_page_is_in_the_nav_and_in_the_index():
    nav = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)["nav"]
    (atlas,) = [part["Failure atlas"] for part in nav if "Failure atlas" in part]
    assert [next(iter(entry.values())) for entry in atlas[1:]] == [
        f"failures/{mode}.md" for mode in sorted(MODES, key=lambda mode: (mode[0], int(mode[1:])))
    ]
    for mode in MODES:
        assert f"({mode}.md)" in page("index")
