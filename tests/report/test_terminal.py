"""The console shows names and texts as they are: no markup, no pictures, nothing that acts on it."""

from __future__ import annotations

import io

import pytest
from rich.table import Table
from rich.text import Text

from trainwright.report.terminal import Terminal, styled

FOREIGN = ["[/red]", "loss/[draft]", "[bold]x", ":bomb:", "C:\\data\\", "[link=http://x]y[/link]"]
ACTING = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x1b]0;title\x07": "\\x1b]0;title\\x07",
    "a\rb": "a\\rb",
    "\u202eabc": "\\u202eabc",
}


def printed(*things: object) -> str:
    out = io.StringIO()
    console = Terminal(file=out)
    for thing in things:
        console.print(thing, soft_wrap=True)
    return out.getvalue()


@pytest.mark.parametrize("text", FOREIGN)
def test_text_is_no_markup(text: str) -> None:
    table = Table(text, title=text)
    table.add_row(text)
    assert (
        printed(text, Text(text), styled("[red]failed[/]: {}", text)) == f"{text}\n{text}\nfailed: {text}\n"
    )
    assert printed(table).count(text) == 3


@pytest.mark.parametrize(("text", "want"), list(ACTING.items()))
def test_nothing_acts_on_the_terminal(text: str, want: str) -> None:
    table = Table("a column")
    table.add_row(text)
    assert printed(text) == printed(styled("{}", text)) == f"{want}\n" and want in printed(table)
    assert not any(c in printed(Text(text)) for c in "\x1b\x07\r\u202e"), (
        "Rich itself drops some of them from a Text"
    )


def test_our_own_style_stays() -> None:
    made = styled("[red]{}[/] and [bold]b[/]: {}", "[/red]", "{}")
    assert made.plain == "[/red] and b: {}"
    assert [(made.plain[s.start : s.end], str(s.style)) for s in made.spans if s.style] == [
        ("[/red]", "red"),
        ("b", "bold"),
    ]


def test_lines_and_tabs_of_a_document_stay() -> None:
    assert printed("a\nb") == "a\nb\n"
