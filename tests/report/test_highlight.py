"""Colours change no letter of a recipe."""
from __future__ import annotations

import html
import re

import pytest

from trainwright.report.highlight import highlight


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a = 1",
        "# only a comment",
        'x = "a # no comment"',
        "[[stage]]\nname = 'é'",
        'a = """\n[x]\n"""',
        'broken = ["',
        "<b>",
    ],
)
def test_highlighting_changes_no_letter(text: str) -> None:
    marked = str(highlight(text))
    assert html.unescape(re.sub(r"</?span[^>]*>", "", marked)) == text
    assert "t-comment" not in marked or text.startswith("#")
