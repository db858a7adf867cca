"""Keeps a random part of the documents: the baseline of every selection.

Each document is drawn with the same probability, without replacement. Which ones depends on the seed and
the ids alone, so a larger share contains the smaller.

Not for a subset with fixed shares of the domains: use it once per domain, or set a ``mixture``.

Errors: a count larger than the corpus, nothing to choose from.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainwright.core.method import Curate
from trainwright.corpus.selecting import amount, check_amount, columns, keep, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class RandomSubset(Curate):
    """Keeps documents drawn at random."""

    count: int | None = None
    """Documents to keep; or ``share``."""
    share: float | None = None
    """Documents to keep, as a share of the incoming ones; a tenth by default."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a share can be taken only of a known number of documents"}
    example: ClassVar[dict[str, Any]] = {"share": 0.5}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.tokens import uniform
        rows = settled(documents, ctx, often=False)
        ids = columns(rows, "id")["id"].to_numpy().astype(object)
        place = np.array([uniform(name, f"random_subset/{ctx.seed}") for name in ids])
        most = amount(len(ids), self.count, self.share, self.name)
        return keep(rows, ids[np.argsort(place, kind="stable")[:most]])
