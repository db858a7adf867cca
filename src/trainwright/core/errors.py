"""Mistakes of a user, told in one sentence: what is wrong, where, and what would be right."""
from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with 2."""


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the recipe and its stage in front of a mistake that is found where neither is known."""
    try:
        yield
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from None


def suggest(word: str, among: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of the right words, or the list of them when none is near."""
    right = sorted(set(among))
    near = difflib.get_close_matches(word, right, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    return f" (known: {', '.join(right)})" if right else ""
