"""Text of models on a Hub page: shown, never obeyed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhf_ext.markdown import block, inline, table, visible


@given(st.text())
def test_nothing_ends_a_block_or_begins_a_tag(text):
    inside = block(text, limit=10**6).removeprefix("<pre>").removesuffix("</pre>")
    assert "<" not in inside and ">" not in inside
    inside.encode()


@given(st.text())
def test_a_cell_stays_one_cell_on_one_line(text):
    *_, row = table(["name"], [[text]]).split("\n")
    assert table(["name"], [[text]]).count("\n") == 2
    assert row.replace("\\\\", "").replace("\\|", "").count("|") == 2
    assert "<" not in inline(text)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a\\u202eb"),
        ("\x1b[31m", "\\u001b[31m"),
        ("\ud800", "\\ud800"),
        ("tab\tline\nname é 👩‍💻", "tab\tline\nname é 👩‍💻"),
    ],
)
def test_what_cannot_be_seen_is_written_out(text, shown):
    assert visible(text) == shown


def test_markup_is_escaped_by_hand():
    assert inline("*a* [b](c) `d`\n<e>") == r"\*a\* \[b\](c) \`d\` &lt;e&gt;"
    assert block("x" * 5, limit=3) == "<pre>xxx [...]</pre>"
