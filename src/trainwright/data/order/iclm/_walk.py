"""A walk through documents, each time to the most similar one: neighbours, graph, order, duplicates."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest
from trainwright.corpus.tokens import Corpus, Documents

ENTRIES = 1 << 25
"""Similarities that are in memory at one time."""


def read(folder: Path, found: Documents, column: str, method: str) -> tuple[NDArray[np.float32], list[str]]:
    """Embeddings of length one, a row each (zeros where a document has none), and the beginnings of the
    texts.

    Raises:
        UserError: no such column, one that holds no lists of numbers, lists of several lengths, a number
            that is not finite.
    """
    files = sorted((folder / "documents").glob("*.parquet"))
    known = pq.read_schema(files[0])
    if column not in known.names:
        raise UserError(f"{method} reads the column {column!r} of the documents, which the corpus has not"
                        f"{suggest(column, known.names)}: put embed into its stage.")
    table = pa.concat_tables([pq.read_table(f, columns=list(dict.fromkeys(["id", "text", column])))
                              for f in files])
    place = {name: i for i, name in enumerate(found.id)}
    rows = np.array([place.get(name, -1) for name in table["id"].to_pylist()])
    table, rows = table.filter(pa.array(rows >= 0)), rows[rows >= 0]
    begins = [""] * len(found)
    for i, text in zip(rows.tolist(), table["text"].to_pylist(), strict=True):
        begins[i] = (text or "")[:100]
    return _unit(table[column].combine_chunks(), rows, len(found), column, method), begins


def _unit(told: Any, rows: NDArray[np.int64], many: int, column: str, method: str) -> NDArray[np.float32]:
    if not (pa.types.is_list(told.type) or pa.types.is_large_list(told.type)
            or pa.types.is_fixed_size_list(told.type)):
        raise UserError(f"{method} reads the column {column!r} as embeddings; it holds {told.type}, not "
                        "lists of numbers.")
    there = told.is_valid().to_numpy(zero_copy_only=False)
    vectors = [np.asarray(v, dtype=np.float32) for v in told.drop_null().to_pylist()]
    sizes = {len(v) for v in vectors}
    if len(sizes) != 1:
        raise UserError(f"{method}: the embeddings in {column!r} must be of one length; there are "
                        f"{sorted(sizes) or 'none'}.")
    out = np.zeros((many, sizes.pop()), dtype=np.float32)
    out[rows[there]] = np.stack(vectors)
    if not np.isfinite(out).all():
        raise UserError(f"{method}: {int((~np.isfinite(out)).any(1).sum()):,} embeddings in {column!r} have "
                        "numbers that are not finite: the method that wrote them went wrong.")
    return out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)


def words(corpus: Corpus, found: Documents) -> Any:
    """What stands for embeddings where there are none: tf-idf of the tokens, a sparse row of length one
    for each document."""
    from scipy.sparse import csr_matrix, diags
    counted = [np.unique(corpus.read(int(s), int(o), int(n)), return_counts=True)
               for s, o, n in zip(found.shard, found.offset, found.length, strict=True)]
    ends = np.cumsum([0, *(len(ids) for ids, _ in counted)])
    ids, counts = (np.concatenate([pair[i] for pair in counted]) for i in range(2))
    table = csr_matrix((counts.astype(np.float32), ids, ends), shape=(len(found), corpus.vocab_size))
    seen = np.bincount(ids, minlength=corpus.vocab_size)
    # a token of every document says nothing
    table = table @ diags(np.log((1 + len(found)) / (1 + seen)).astype(np.float32))
    length = np.sqrt(np.asarray(table.multiply(table).sum(1)).ravel())
    return (diags((1 / np.maximum(length, 1e-12)).astype(np.float32)) @ table).tocsr()


def neighbours(vectors: Any, most: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """For each row the ``most`` others nearest to it, the nearest first, and their similarities; exact."""
    many = vectors.shape[0]
    most, block = min(most, many - 1), max(1, ENTRIES // many)
    near, likeness = np.empty((many, most), dtype=np.int64), np.empty((many, most), dtype=np.float32)
    for at in range(0, many, block):
        part = vectors[at:at + block] @ vectors.T
        part = np.asarray(part if isinstance(part, np.ndarray) else part.toarray())
        part[np.arange(len(part)), at + np.arange(len(part))] = -np.inf
        none = np.empty((len(part), 0), dtype=np.int64)
        found = np.argpartition(-part, most - 1, axis=1)[:, :most] if most else none
        value = np.take_along_axis(part, found, 1)
        order = np.lexsort((found, -value), axis=1)
        near[at:at + block] = np.take_along_axis(found, order, 1)
        likeness[at:at + block] = np.take_along_axis(value, order, 1)
    return near, likeness


def walk(near: NDArray[np.int64], likeness: NDArray[np.float32]) -> NDArray[np.int64]:
    """Every document once: from the one of fewest edges on, always to the most similar neighbour that is
    left; at a dead end on from the one of fewest edges that is left."""
    many, most = near.shape
    one, other = np.repeat(np.arange(many), most), near.ravel()
    edges = np.concatenate([np.stack([one, other], 1), np.stack([other, one], 1)])
    edges, first = np.unique(edges, axis=0, return_index=True)
    like = np.concatenate([likeness.ravel()] * 2)[first]
    order = np.lexsort((edges[:, 1], -like, edges[:, 0]))
    degree = np.bincount(edges[:, 0], minlength=many)
    begin, to = np.concatenate([[0], degree.cumsum()]).tolist(), edges[order, 1].tolist()
    left, path = [True] * many, list[int]()
    for start in np.argsort(degree, kind="stable").tolist():
        at = start if left[start] else -1
        while at >= 0:
            left[at] = False
            path.append(at)
            at = next((n for n in to[begin[at]:begin[at + 1]] if left[n]), -1)
    return np.array(path, dtype=np.int64)


def distinct(path: NDArray[np.int64], begins: Sequence[str], most: float) -> NDArray[np.int64]:
    """The walk without those whose beginning is too much like that of the last one kept: Jaccard of runs
    of three characters."""
    kept, last = list[int](), set[str]()
    for i in path.tolist():
        grams = {begins[i][k:k + 3] for k in range(len(begins[i]) - 2)}
        if not (grams and last) or len(grams & last) <= most * len(grams | last):
            kept.append(i)
            last = grams
    return np.array(kept, dtype=np.int64)
