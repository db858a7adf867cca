"""Score first, diversity second: takes documents from the best score down, skipping those near one taken.

"What Makes Good Data for Alignment? A Comprehensive Study of Automatic Data Selection in Instruction
Tuning" (DEITA, arXiv 2312.15685). With scores s_i and embeddings e_i, from the highest s_i down,

    s_i = complexity_i quality_i
    keep i if  max over kept j of  cos(e_i, e_j) <= tau,        until ``count`` are kept

``scores`` names the columns that are multiplied; ``similarity`` is tau, a cosine similarity and not a
distance. Each document is compared with the kept ones alone; the authors' code, which works in batches,
also drops what is near a dropped document. The paper's scores are the column ``evol`` that ``score_evol``
writes (in a conversation, the products of its turns are summed), from scorers that ``evol_grades`` makes
the training data for; the embedding is that of ``embed``.

Among equal scores the first id comes first. A document without a score or an embedding (null, or zeros: an
empty document) is never kept. If fewer than ``count`` are different enough, fewer are kept, and the log
says so. If all embeddings share one direction (the mean states of a causal model: cosines of 0.99 and more
between any two documents), ``center`` subtracts their mean first; the paper, whose embeddings come from a
13B model, does not. The embeddings are in memory, and the kept ones twice.

Not where there is no score to begin with: diversity alone is another method's.

Errors: a column that is missing or holds no numbers, NaN, negative scores where several are multiplied, a
count larger than the documents that have both. """
from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus.selecting import amount, check_amount, keep, scores, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

BLOCK = 1024
"""Documents that are compared with all kept ones at once."""


class Deita(Curate):
    """Keeps the best documents of which no two are nearer than a threshold."""

    scores: tuple[str, ...]
    """Columns that are multiplied to the score; one alone is the score."""
    lowest: bool = False
    """Whether the lowest score is the best one (a loss)."""
    similarity: float = 0.9
    """Cosine similarity to a kept document above which another is skipped (tau)."""
    center: bool = False
    """Whether to subtract the mean of all embeddings before they are compared."""
    column: str = "embedding"
    """Column with the embeddings."""
    count: int | None = None
    """Documents to keep at most; or ``share``."""
    share: float | None = None
    """Documents to keep at most, as a share of those with a score and an embedding; a tenth by default."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"scores": ["score"], "share": 0.5}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)
        if not self.scores:
            raise ValueError("scores names no column")
        if not -1 <= self.similarity <= 1:
            raise ValueError(f"similarity is a cosine, from -1 to 1, not {self.similarity}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.clusters import points
        rows = settled(documents, ctx, often=False)
        score = self._scores(rows)
        ids, embeddings = points(rows, self.column, self.name)
        whole = np.array([name in score for name in ids]) & (embeddings != 0).any(1)
        ids, embeddings = ids[whole], embeddings[whole]
        most = amount(len(ids), self.count, self.share, self.name)
        values = np.array([score[name] for name in ids])
        order = np.lexsort((ids.astype(str), values if self.lowest else -values))
        places = embeddings - embeddings.mean(0) if self.center else embeddings
        lengths = np.linalg.norm(places, axis=1, keepdims=True)
        units = (places / np.maximum(lengths, np.finfo(float).tiny))[order].astype(np.float32)
        kept, near_to = diverse(units, self.similarity, most)
        near = int((near_to >= 0).sum())
        ctx.note(f"{self.name}/kept", len(kept))
        ctx.note(f"{self.name}/near", near)
        self._explain(ids[order], values[order], kept, near_to, ctx)
        why = f", fewer than the {most:,} asked for: no other is different enough"
        short = why if len(kept) < most else ""
        ctx.show(self.name, f"{len(kept):,} of {len(ids):,} documents kept{short}; {near:,} skipped as too "
                            "near to them")
        return keep(rows, ids[order[kept]])

    def _explain(self, ids: NDArray[np.object_], values: NDArray[np.float64], kept: NDArray[np.int64],
                 near_to: NDArray[np.int64], ctx: Context) -> None:
        """Why each document was dropped: another one is near, or enough were kept before it."""
        from trainwright.corpus.provenance import because
        near, rest = near_to >= 0, near_to < 0
        rest[kept] = False
        because(ctx, ids[near], "near to a document that is kept", values[near], ids[near_to[near]].tolist())
        because(ctx, ids[rest], f"not among the {len(kept):,} best that differ", values[rest])

    def _scores(self, rows: DataFrame) -> dict[str, float]:
        """The product of the scores, of the documents that have all of them."""
        product: dict[str, float] | None = None
        for column in self.scores:
            ids, values = scores(rows, column, self.name)
            if len(self.scores) > 1 and len(values) and values.min() < 0:
                raise UserError(f"{self.name}: the scores in {column!r} go down to {values.min():g}: a "
                                "product of scores that may be negative is no order.")
            found = dict(zip(ids.tolist(), values.tolist(), strict=True))
            product = found if product is None else {i: s * found[i]
                                                     for i, s in product.items() if i in found}
        return product or {}


def diverse(units: NDArray[np.float32], similarity: float,
            most: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of unit vectors [documents, dimensions], best first, that are taken; and of each row that was
    skipped the taken one that it is near to, -1 of all others."""
    kept: list[int] = []
    near_to = np.full(len(units), -1)
    taken = np.empty((min(most, len(units)), units.shape[1]), np.float32)
    for begin in range(0, len(units), BLOCK):
        block = units[begin:begin + BLOCK]
        near = block @ taken[:len(kept)].T
        free = near.max(1, initial=-np.inf) <= similarity
        nearest = np.array(kept)[near.argmax(1)] if kept else np.full(len(block), -1)
        among = block @ block.T
        for i in range(len(block)):
            if not free[i]:
                near_to[begin + i] = nearest[i]
                continue
            taken[len(kept)] = block[i]
            kept.append(begin + i)
            if len(kept) == most:
                return np.array(kept), near_to
            hit = np.flatnonzero(free[i + 1:] & (among[i, i + 1:] > similarity)) + i + 1
            free[hit], nearest[hit] = False, begin + i
    return np.array(kept, dtype=np.int64), near_to
