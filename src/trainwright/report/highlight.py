"""A recipe on a page: its comments, strings, headings, keys and numbers in colours."""
from __future__ import annotations

import re

from markupsafe import Markup, escape

TOML = re.compile(r"""(?P<comment>\#[^\n]*)"""
                  r"""|(?P<string>\"{3}.*?\"{3}|'{3}.*?'{3}|"(?:\\.|[^"\\\n])*"|'[^'\n]*')"""
                  r"""|(?P<head>^[ \t]*\[\[?[^\]\n]*\]\]?)|(?P<key>[A-Za-z0-9_.-]+(?=[ \t]*=))"""
                  r"""|(?P<number>\b(?:true|false|[+-]?\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?)\b)""",
                  re.MULTILINE | re.DOTALL)


def highlight(text: str) -> Markup:
    """A recipe with its comments, strings, headings, keys and numbers marked; everything escaped."""
    out, at = [], 0
    for found in TOML.finditer(text):
        out.append(escape(text[at:found.start()]))
        out.append(Markup('<span class="t-{}">{}</span>').format(found.lastgroup, found[0]))
        at = found.end()
    return Markup("").join([*out, escape(text[at:])])
