"""Scores documents by the distance to their i-th nearest neighbour: how alone each is among the others.

One of the indicators of "Instruction Mining: High-Quality Instruction Data Selection for Large Language
Models" (arXiv 2307.06290), there called Knn_i, with i = 6. With e the embeddings,

    knn(d) = the i-th smallest of |e_d - e_j| over all other documents j

Euclidean, of embeddings as they are (``embed`` writes them); with ``unit`` of embeddings of length 1, where
it orders as the cosine does. All pairs are compared, in blocks, exactly; the paper's package may find its
neighbours approximately. A document without an embedding (null) has null. Copies are neighbours at distance
0.

Not beyond some hundred thousand documents: the time grows with the square of their number.

Errors: no such column, one that holds no embeddings, fewer than i other documents.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.settings import Count

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

BLOCK = 1024
"""Documents that are compared with all others at once."""


class ScoreNeighbors(Curate):
    """Adds a column with the distance of each document to its i-th nearest neighbour."""

    neighbor: Count = 6
    """Which of the nearest others (i)."""
    unit: bool = False
    """Whether embeddings are scaled to a length of 1 first."""
    embedding: str = "embedding"
    """Column with the embeddings."""
    column: str = "knn"
    """Name of the new column."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "each document is compared with all others"}
    example: ClassVar[dict[str, Any]] = {"neighbor": 2}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.corpus.clusters import points, unit
        from trainwright.corpus.selecting import attach, settled
        rows = settled(documents, ctx, often=False)
        ids, places = points(rows, self.embedding, self.name)
        if len(ids) <= self.neighbor:
            raise UserError(f"{self.name}: {len(ids):,} documents with an embedding have no neighbor = "
                            f"{self.neighbor} beside themselves: take a smaller one.")
        found = distances(unit(places) if self.unit else places, self.neighbor)
        return attach(rows, pa.table({"id": pa.array(ids, pa.large_string()), self.column: found}))


def distances(places: NDArray[np.float64], neighbor: int) -> NDArray[np.float64]:
    """Of each point [points, dimensions] the distance to its ``neighbor``-th nearest other."""
    squares, out = np.square(places).sum(1), np.empty(len(places))
    for begin in range(0, len(places), BLOCK):
        block = places[begin:begin + BLOCK]
        apart = squares[begin:begin + BLOCK, None] + squares - 2 * block @ places.T
        apart[np.arange(len(block)), begin + np.arange(len(block))] = np.inf
        nearest = np.argpartition(apart, neighbor - 1, axis=1)[:, :neighbor]
        exact = np.linalg.norm(block[:, None] - places[nearest], axis=2)      # squares that cancel are coarse
        out[begin:begin + len(block)] = exact.max(1)
    return out
