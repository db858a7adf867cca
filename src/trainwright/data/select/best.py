"""Keeps the documents with the highest (or lowest) score: top-k by a column that an earlier method wrote.

Among equal scores the first ids are kept. A document without a score (null) is never kept.

Not for diverse selections: near-copies of the best document are all kept; see ``deita``.

Errors: no such column, one that holds no numbers, a score that is NaN, a count larger than the documents
with a score. """
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from trainwright.core.method import Curate
from trainwright.corpus.selecting import amount, check_amount, keep_first, scores, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class Best(Curate):
    """Keeps the documents with the best score."""

    column: str
    """Column with the scores."""
    lowest: bool = False
    """Whether the lowest scores are the best ones."""
    count: int | None = None
    """Documents to keep; or ``share``."""
    share: float | None = None
    """Documents to keep, as a share of the incoming ones; a tenth by default."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"column": "score", "share": 0.5}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        rows = settled(documents, ctx, often=False)
        ids, values = scores(rows, self.column, self.name)
        order = np.lexsort((ids.astype(str), values if self.lowest else -values))
        many = amount(len(ids), self.count, self.share, self.name)
        return keep_first(rows, ids, order, many, ctx, self.column, values)
