"""Keeps a random part of the documents: what every selection has to beat.

Each document is drawn with the same probability, without replacement; which ones depends on the seed and on the ids alone, so a
larger share contains the smaller.

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
    """Documents to keep, as a share of those that come in; a tenth where neither is said."""
    example: ClassVar[dict[str, Any]] = {"share": 0.5}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.tokens import uniform
        rows = settled(documents, ctx, often=False)
        ids = columns(rows, "id")["id"].to_numpy().astype(object)
        place = np.array([uniform(name, f"random_subset/{ctx.seed}") for name in ids])
        return keep(rows, ids[np.argsort(place, kind="stable")[:amount(len(ids), self.count, self.share, self.name)]])
