"""Paragraphs of a terminal."""
from __future__ import annotations

import textwrap


def indented(text: str, width: int) -> str:
    """A paragraph in lines of at most ``width`` characters, set off by six blanks; ends its last line."""
    lines = textwrap.wrap(
        text, width, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
    )
    return "".join(f"{line}\n" for line in lines)
