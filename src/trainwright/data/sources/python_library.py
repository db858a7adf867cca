"""Real text that is on every machine: the interpreter's standard library and the packages it needs.

Domain ``code`` has their source files; domain ``prose`` their long docstrings, Markdown and
reStructuredText files and package descriptions. A docstring that counts as prose is cut from the code, so
no text is in both. Packages take turns, each in the order of a hash of its file names, until a domain is
full: the same interpreter and packages give the same documents.

Not for a corpus that must be the same on two machines with other versions: use ``text`` and keep the files.

Errors: an unknown domain, a size that is not positive.
"""
from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row
    from trainwright.data.sources._python_sources import File

DOMAINS = ("code", "prose")
REQUIRING = "trainwright"
"""The distribution whose requirements are read; where it is not installed, the standard library alone is."""


class PythonLibrary(Curate):
    """Source code and documentation of the running interpreter and of the packages that are needed anyway."""

    example: ClassVar[dict[str, Any]] = {"megabytes": 0.05}

    megabytes: float = 4.0
    """About how much text of each domain, in millions of bytes."""
    domains: tuple[str, ...] = DOMAINS
    """Which of ``code`` and ``prose``."""
    min_characters: int = 200
    """A docstring or a file of documentation that is shorter is no document of ``prose``."""

    def __post_init__(self) -> None:
        if not self.domains or not set(self.domains) <= set(DOMAINS):
            raise ValueError(f"domains are {' and '.join(DOMAINS)}, not {list(self.domains)}.")
        if self.megabytes <= 0:
            raise ValueError(f"megabytes must be positive, not {self.megabytes}.")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.sources import table, union
        from trainwright.data.sources._python_sources import ordered, packages
        rows = list(self._rows(ordered(packages(REQUIRING))))
        return union(documents, table(self.name, [partial(iter, rows)]))

    def depends(self, root: Path) -> str:
        """The releases of the interpreter and of the packages."""
        from trainwright.data.sources._python_sources import releases
        return repr([release for release, _ in releases(REQUIRING)])

    def _rows(self, files: Iterator[File]) -> Iterator[Row]:
        """Documents until each domain is full; the same text never twice."""
        from trainwright.corpus.sources import document
        left = dict.fromkeys(self.domains, self.megabytes * 1e6)
        seen: set[bytes] = set()
        for file in files:
            if max(left.values()) <= 0:
                return
            for domain, name, text in self._texts(file, left.get("code", 0) > 0):
                digest = hashlib.sha256(text.encode()).digest()
                if left.get(domain, 0) > 0 and digest not in seen:
                    seen.add(digest)
                    left[domain] -= len(text.encode())
                    package = file.release.split()[0]
                    yield document(id=f"{domain}/{package}/{file.name}{name}", text=text, domain=domain,
                                   source=file.release,
                                   metadata={"path": file.name})

    def _texts(self, file: File, code: bool) -> Iterator[tuple[str, str, str]]:
        """Domain, what to add to the path, and text of what is in a file; ``code`` says whether code is
        still wanted."""
        from trainwright.data.sources._python_sources import is_prose, long_strings, parse, read
        text = read(file)
        if text is None:
            return
        if not file.name.endswith(".py"):
            body = text.partition("\n\n")[2] if file.name.endswith("METADATA") else text
            if len(body) >= self.min_characters and is_prose(body):
                yield "prose", "", body
            return
        # Parsing takes nearly all the time: once only prose is wanted, a file must promise some.
        if not code and long_strings(text, self.min_characters) < 0.1 * len(text):
            return
        parsed = parse(text, self.min_characters)
        if parsed is None:
            return
        if len(parsed.code) >= self.min_characters:
            yield "code", "", parsed.code
        for name, prose in parsed.prose.items():
            yield "prose", f":{name}" if name else "", prose
