"""Foreign text as it may stand in a message, a terminal or a page: names, documents, values, answers from
elsewhere."""
from __future__ import annotations

import math
import re
import reprlib
from typing import Any

UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb"
                    "\ud800-\udfff\U000e0000-\U000e007f]")
"""What is no letter and acts on those around it: control characters, escapes of terminals, turns of the
direction of reading, halves of characters."""
LAYOUT = "\n\t"
BRIEF = 60
"""Characters of a value in a message."""


def plain(text: str, lines: bool = False) -> str:
    """The text with everything unseen written out (``\\x1b``); with ``lines``, ends of lines and tabs stay.

    A string that is plain already is returned as it is, whatever its class.
    """
    def written(found: re.Match[str]) -> str:
        return found[0] if lines and found[0] in LAYOUT else ascii(found[0])[1:-1]
    return UNSEEN.sub(written, text) if UNSEEN.search(text) else text


def cut(text: str, most: int) -> str:
    """The text, without its middle where it is longer than ``most`` characters."""
    if len(text) <= most:
        return text
    end = most // 3
    return f"{text[:most - end - 3].rstrip()} … {text[len(text) - end:].lstrip()}"


class _Brief(reprlib.Repr):
    """A value as Python writes it, within a line: deep, long and enormous ones are cut."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, BRIEF, BRIEF

    def repr_date(self, x: object, level: int) -> str:
        return str(x)

    repr_datetime = repr_time = repr_date

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**24:
            return repr(x)
        digits = int(math.log10(abs(x))) + 1
        return f"a number of {digits - (10 ** (digits - 1) > abs(x))} digits"


def brief(value: Any) -> str:
    """A value as Python writes it, at most about a line long, whatever it is."""
    return cut(plain(_Brief().repr(value)), 2 * BRIEF)
