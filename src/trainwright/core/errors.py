"""Mistakes of a user, told in one sentence: what is wrong, where, and what would be right."""
from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from trainwright.core.shown import brief, cut, plain

LONGEST = 1000
"""Characters of a message; of a longer one the middle is left out."""
LISTED = 150
"""Characters of a list of right words."""


class UserError(Exception):
    """Something the user can put right. The command line prints it without a traceback and exits with 2.

    The message is one line without anything unseen, however strange the names and values in it are.
    """

    def __init__(self, message: str) -> None:
        super().__init__(cut(plain(re.sub(r"\s*\n\s*", " ", str(message).strip())), LONGEST))


@contextmanager
def located(where: str) -> Iterator[None]:
    """Put the recipe and its stage in front of a mistake that is found where neither is known. That a method
    ends the whole program is such a mistake."""
    try:
        yield
    except UserError as error:
        if where in str(error):
            raise
        raise UserError(f"{where}: {error}") from None
    except SystemExit as ended:
        raise UserError(f"{where}: {exited(ended)}") from None


def exited(ended: SystemExit) -> str:
    """What is wrong where code that is not the command line's calls ``sys.exit``."""
    said = f"sys.exit({brief(ended.code)})"
    return f"a method, or a library, ended the program ({said}), which only a command may."


def suggest(word: str, among: Iterable[str]) -> str:
    """`` (did you mean 'x'?)`` for the nearest of the right words, or the list of them when none is near."""
    right = sorted(set(among))
    near = difflib.get_close_matches(word[:LISTED], right, n=1, cutoff=0.6)
    if near:
        return f" (did you mean {near[0]!r}?)"
    listed: list[str] = []
    for one in right:
        if len(", ".join([*listed, one])) > LISTED:
            return f" (known: {', '.join(listed)} and {len(right) - len(listed)} more)" if listed else ""
        listed.append(one)
    return f" (known: {', '.join(listed)})" if listed else ""
