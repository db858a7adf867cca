"""Mistakes of a user, told in one sentence: what is wrong, where, and what would be right."""
from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with 2."""


def suggest(word: str, among: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of the right words, or the list of them when none is near."""
    right = sorted(set(among))
    near = difflib.get_close_matches(word, right, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(right)})" if right else ""
