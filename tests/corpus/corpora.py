"""Small corpora for tests: documents given by hand, built in a folder."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from trainwright.core.context import Context
from trainwright.core.method import Curate
from trainwright.corpus import building

ODD = ["naïve Zoë — 日本語 ไทย עברית", "👩‍👩‍👧‍👦 and 👋🏽", "tabs\tand  spaces \r\n\n\n at ends  ",
       "<|endoftext|> is only a word here <s>", "x", "a\x00b\x0cc\u2028d", "é e\u0301"]
"""Texts that a careless tokenizer or file format changes."""


class Given(Curate):
    """Documents that are given by hand."""

    rows: tuple[dict[str, Any], ...] = ()
    """Rows; what they leave out is filled in."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        from trainwright.corpus.sources import document, table, union
        usual = {"text": "", "domain": "d", "source": "test"}
        full = [document(**usual | {"id": str(i)} | dict(r)) for i, r in enumerate(self.rows)]
        return union(documents, table("given", [full.__iter__]))


class KeepLong(Curate):
    """Drops documents of fewer characters."""

    least: int = 0
    """Characters."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        return documents.where(documents["text"].length() >= self.least)


class Chosen(Curate):
    """Keeps the documents of these ids."""

    ids: tuple[str, ...] = ()
    """Their ids."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        from trainwright.corpus.selecting import keep
        return keep(documents, self.ids)


def texts(n: int, domain: str = "d") -> list[dict[str, Any]]:
    """``n`` documents with odd characters, all different."""
    return [{"id": f"{domain}/{i:04d}", "text": f"{ODD[i % len(ODD)]} number {i} of {domain}",
             "domain": domain}
            for i in range(n)]


def build(folder: Path, rows: Any, *more: Curate, cache: Path | None = None, said: list[str] | None = None,
          **settings: Any) -> dict[str, Any]:
    """Build a corpus of the rows in ``folder``; the vocabulary is 400 unless ``tokenizer`` is given (None: no
    tokens)."""
    if "tokenizer" not in settings:
        settings.setdefault("vocab_size", 400)
    folder.mkdir(parents=True, exist_ok=True)
    say = [].append if said is None else said.append
    given = [Given(rows=tuple(rows))] if rows is not None else []
    made = building.CorpusSettings(**settings)
    ctx = Context(inputs={"data": [made.data]} if made.data else {})
    return building.build(folder, [*given, *more], made, ctx, cache or folder.parent / "cache", say)
