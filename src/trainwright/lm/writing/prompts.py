"""Prompts for a writer: passages of a text, templates, and answers without a chat model's small talk."""
from __future__ import annotations

import re
from collections.abc import Iterator

BEFORE = re.compile(r"\A((sure|certainly|of course|absolutely)\b[^\n]{0,160}[:!.]"
                    r"|here('s| is| are)\b[^\n]{0,160}:)\s*\n", re.I)
BEHIND = re.compile(r"\n+(i hope (this|that)|(please )?let me know|feel free to|is there anything else)\b"
                    r"[^\n]*\s*\Z", re.I)
BLANK, SENTENCE = r"\n\s*\n", r"\n\s*\n|(?<=[.!?])\s+"
"""What stands between paragraphs, and between sentences."""
QUOTES = {('"', '"'), ("\u201c", "\u201d")}


def passages(text: str, most: int) -> Iterator[str]:
    """``text`` cut into passages of at most ``most`` characters; blank ones are left out.

    A passage ends at the last blank line of its second half, else at its last end of a sentence; a sentence
    that is longer than a passage is cut at a space, and a word anywhere.
    """
    at = 0
    while at < len(text):
        end = at + most if at + most < len(text) else len(text)
        if end < len(text):
            window = text[at:end + 1]                          # a passage may end where its window does
            for break_at, least in ((BLANK, most / 2), (SENTENCE, 1), (r"\s+", 1)):
                if ends := [m.end() for m in re.finditer(break_at, window) if m.start() >= least]:
                    end = at + ends[-1]
                    break
        if passage := text[at:end].strip():
            yield passage
        at = end


def filled(template: str, **parts: str) -> str:
    """``template`` with each ``{name}`` replaced by its part; braces within a part stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda m: parts.get(m[1], m[0]), template)


def cleaned(answer: str) -> str:
    """``answer`` without the lines a chat model puts before and after it, and without quotes around it."""
    text = BEHIND.sub("", BEFORE.sub("", answer.strip())).strip()
    quoted = len(text) > 1 and (text[0], text[-1]) in QUOTES
    if quoted and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text
