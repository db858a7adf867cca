"""Real text that is on every machine: the interpreter's standard library and the packages that this one needs.

Domain ``code`` is their source files, domain ``prose`` their long docstrings, Markdown and reStructuredText files and package
descriptions; a docstring that counts as prose is cut from the code, so that no text is in both. Packages take turns, each in
the order of a hash of its file names, until a domain is full: the same interpreter and packages give the same documents.

Not for a corpus that must be the same on two machines with other versions: use ``text`` and keep the files.

Raises:
    UserError: an unknown domain, a size that is not positive.
"""
from __future__ import annotations

import importlib.metadata as metadata
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.data._documents import Row
    from trainwright.data._python_sources import File

DOMAINS = ("code", "prose")


class PythonLibrary(Curate):
    """Source code and documentation of the running interpreter and of the packages that are needed anyway."""

    example: ClassVar[dict[str, Any]] = {"megabytes": 0.05}

    megabytes: float = 4.0
    """How much text of each domain, in millions of bytes, at most."""
    domains: list[str] = list(DOMAINS)
    """Which of ``code`` and ``prose``."""
    min_characters: int = 200
    """A docstring or a document that is shorter is no document of ``prose``."""

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.data._documents import table, union
        return union(documents, table(self.name, [partial(gather, self.megabytes, tuple(self.domains), self.min_characters)]))
