"""Spoils a corpus on purpose, with near-duplicates and noise that are marked as such, to test selections.

For a share of the documents (drawn by seed and id) it adds a near-duplicate: the same text with about one
word in thirty replaced by another of its words. For another share it adds noise: one half has the words of
a document in random order, the other random letters. Both keep the domain of the document they were made
from and carry its id, as ``ID#duplicate`` or ``ID#noise``; their metadata say ``{"planted": "duplicate"}``
or ``{"planted": "noise"}``. Conversations stay as they are.

Not for training: it is for tests and comparisons of selections. Use it on training documents
(``from.data``), so that no duplicate of a held-out document gets among them. """
from __future__ import annotations

import random
import re
import string
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from trainwright.core.method import Curate
from trainwright.core.settings import Between

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context
    from trainwright.corpus.sources import Row

Times = Annotated[float, Between(0, 1000)]
"""How many documents for each that comes in."""
Original = tuple[str, str, str, str]
"""Id, text, domain and origin of a document."""


class Spoil(Curate):
    """Adds near-duplicates and noise."""

    duplicates: Times = 0.3
    """Near-duplicates, as a share of the incoming documents; above 1 each has several."""
    noise: Times = 0.3
    """Documents of noise, as a share of the incoming ones."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "the documents that it spoils are drawn from all"}
    example: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if self.duplicates < 0 or self.noise < 0:
            raise ValueError(f"duplicates and noise are shares of 0 and more, not {self.duplicates} and "
                             f"{self.noise}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.editing import plain
        from trainwright.corpus.selecting import columns, settled
        from trainwright.corpus.sources import table, union
        rows = settled(documents, ctx)
        found = columns(plain(rows), "id", "text", "domain", "origin").to_pylist()
        originals = sorted((r["id"], r["text"] or "", r["domain"], r["origin"] or r["id"]) for r in found)
        return union(rows,
                     table("spoil", [partial(_planted, originals, self.duplicates, self.noise, ctx.seed)]))


def _planted(originals: list[Original], duplicates: float, noise: float, seed: int) -> Iterator[Row]:
    from trainwright.corpus.sources import document
    for what, share in (("duplicate", duplicates), ("noise", noise)):
        for id, text, domain, origin in originals:
            draw = random.Random(f"spoil/{seed}/{what}/{id}")
            copies = int(share) + (draw.random() < share % 1)
            for number in range(copies):
                spoiled = _duplicate(text, draw) if what == "duplicate" else _noise(text, draw)
                yield document(id=f"{id}#{what}{number or ''}", text=spoiled, domain=domain, source="spoil",
                               metadata={"planted": what}, origin=origin)


def _duplicate(text: str, draw: random.Random) -> str:
    """``text`` with about one word in thirty replaced, one at least; the space between words stays."""
    parts = re.split(r"(\s+)", text)
    words = [i for i, part in enumerate(parts) if part.strip()]
    for i in draw.sample(words, min(len(words), max(1, len(words) // 30))):
        parts[i] = parts[draw.choice(words)]
    return "".join(parts)


def _noise(text: str, draw: random.Random) -> str:
    """The words in random order, or as many random letters."""
    words = text.split()
    if draw.random() < 0.5:
        draw.shuffle(words)
        return " ".join(words)
    return " ".join("".join(draw.choices(string.ascii_letters, k=len(word))) for word in words)
