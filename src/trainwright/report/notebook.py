"""What is printed in a terminal, as text and as HTML for a notebook."""
from __future__ import annotations

import io

from rich.console import RenderableType

from trainwright.report.terminal import Terminal

WIDTH = 110
"""Letters of a line."""


def text(what: RenderableType) -> str:
    """As plain text."""
    return _recorded(what).export_text().rstrip("\n")


def html(what: RenderableType) -> str:
    """As HTML, with the colours of the notebook's own theme where there are none of ours."""
    page = '<pre style="font-family: monospace; line-height: 1.4; overflow-x: auto">{code}</pre>'
    return _recorded(what).export_html(inline_styles=True, code_format=page)


def _recorded(what: RenderableType) -> Terminal:
    console = Terminal(file=io.StringIO())
    console.record, console.width = True, WIDTH
    console.print(what)
    return console
