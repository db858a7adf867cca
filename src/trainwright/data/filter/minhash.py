"""Drops near-duplicates: documents that share most of their runs of words, found by MinHash and banding.

"On the resemblance and containment of documents" (Broder, 1997); for language models "Deduplicating
Training Data Makes Language Models Better" (arXiv 2107.06499). With S(d) the set of runs of ``ngram`` words
of a document, and h_1 … h_k random orders of all runs,

    J(a, b) = |S(a) and S(b)| / |S(a) or S(b)|        P[ min h_i(S(a)) = min h_i(S(b)) ] = J(a, b)
    P[ a and b agree in one of b bands of r hashes ] = 1 - (1 - J^r)^b

Two documents that agree in a band are a candidate pair. b and r follow from ``threshold``: they minimize
the area of false negatives above it and of false positives below it, mostly the former if candidates are
verified. ``verify`` compares the candidates by their true J. Within a band each document is compared with
the first and with the nearest earlier one that agree with it, not with all, so the work grows with the
documents and not with their square. Documents connected by pairs, directly or through others, are a
cluster, of which one stays: the first by id, or the one with the highest ``prefer``.

Case, punctuation and space are ignored; a character of a script without spaces counts as a word; a document
without a word is left alone. Documents are numbered in the order in which they are preferred, so the
smallest number of a cluster stays. Ids, one band and the candidate pairs are in memory; hashes and shingles
are in the stage's scratch folder.

Not for copies that have a right to be there (a licence in each file, templates of code): they go, too. Not
across ``from.data`` and its held-out documents: see ``decontaminate``.

Errors: no document, a repeated id, no such column as ``prefer``, NaN in it.
"""
from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus.passes import texts
from trainwright.corpus.selecting import need
from trainwright.corpus.shingles import FACTOR, SPACELESS, Hashes, jaccard, shingles

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

Pairs = NDArray[np.int64]
"""[pairs, 2]: numbers of documents, the smaller first."""
BAND = np.dtype([("document", np.int64), ("key", np.uint64)])


CARE = 0.98
"""Weight of missed pairs against false candidates, when the latter are sorted out afterwards."""


class Minhash(Curate):
    """Drops all but one of each cluster of near-duplicates."""

    threshold: float = 0.7
    """Share of common runs of words (Jaccard) at and above which two documents are duplicates."""
    ngram: int = 3
    """Words in a run. One word in thirty replaced leaves J = 0.82 with runs of 3 and 0.71 with runs of 5."""
    hashes: int = 128
    """Hash functions; more find pairs near the threshold more surely."""
    verify: bool = True
    """Whether to compute the true J of each candidate pair; otherwise agreement in a band is enough."""
    prefer: str = ""
    """Column of numbers whose highest is kept of a cluster; default, and among equals: the first by id."""
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a duplicate is one only beside all other documents"}
    example: ClassVar[dict[str, Any]] = {"hashes": 32}

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1, not {self.threshold}")
        if self.ngram < 1 or self.hashes < 1:
            raise ValueError(f"ngram and hashes must be positive, not {self.ngram} and {self.hashes}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.passes import without
        from trainwright.corpus.provenance import because
        from trainwright.corpus.selecting import settled
        rows = settled(documents, ctx)
        bands, per_band = banding(self.threshold, self.hashes, CARE if self.verify else 0.5)
        found = Signatures.of(rows, ctx, self.ngram, bands, per_band, self.prefer, self.name)
        if not len(found.ids):
            raise UserError("minhash has nothing to compare: no document came in.")
        pairs = found.pairs()
        real = verified(rows, ctx, found, pairs, self.ngram, self.threshold) if self.verify else pairs
        cluster = clusters(real, len(found.ids))
        rest, stays = others(cluster)
        gone = found.ids.take(rest)
        because(ctx, gone, "near-duplicate", partner=found.ids.take(stays).to_pylist())
        for name, value in (("candidate_pairs", len(pairs)), ("pairs", len(real)), ("dropped", len(gone))):
            ctx.note(f"{self.name}/{name}", value)
        ctx.show(self.name, f"{len(gone):,} of {len(found.ids):,} documents dropped as near-duplicates; "
                            f"{len(pairs):,} candidate pairs by {bands} bands of {per_band} hashes, "
                            f"{len(real):,} of them real")
        return without(rows, gone)


def banding(threshold: float, hashes: int, care: float) -> tuple[int, int]:
    """Bands, and hashes of a band: of all that ``hashes`` allow those with the smallest error.

    The error is the area between 1 - (1 - J^r)^b and the step at ``threshold``; what lies above the
    threshold (pairs that are missed) weighs ``care``, what lies below it the rest. """
    grid = (np.arange(1000) + 0.5) / 1000
    best = (np.inf, 1, 1)
    for per_band in range(1, hashes + 1):
        bands = hashes // per_band
        met = 1 - (1 - grid ** per_band) ** bands
        error = float(np.where(grid < threshold, (1 - care) * met, care * (1 - met)).mean())
        best = min(best, (error, bands, per_band))
    return best[1], best[2]


@dataclass(frozen=True)
class Signatures:
    """The bands of all documents: a file for each band."""

    ids: pa.LargeStringArray
    """In the order in which they are preferred."""
    number: NDArray[np.int64]
    """Of a row of the files its place in ``ids``."""
    folder: Path
    bands: int

    @classmethod
    def of(cls, rows: DataFrame, ctx: Context, ngram: int, bands: int, per_band: int, prefer: str,
           method: str) -> Signatures:
        """Hash all documents, or find that done in the stage's scratch.

        Raises:
            UserError: ``prefer`` is no column of numbers, or holds NaN; an id occurs twice.
        """
        assert ctx.folder is not None
        folder, unfinished = ctx.folder / "bands", ctx.folder / "bands.unfinished"
        if prefer:
            need(rows, prefer, method)
        if not folder.is_dir():
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            _write(rows, ngram, bands, per_band, prefer, ctx.seed, unfinished)
            unfinished.rename(folder)
        told = pq.read_table(folder / "ids.parquet")
        if prefer:
            _check_numbers(told, prefer, method)
        if twins := len(told) - pc.count_distinct(told["id"]).as_py():
            raise UserError(f"{method}: {twins:,} documents share an id with another: read each file once, "
                            "and give such documents different domains or ids.")
        keys = ([("prefer", "descending")] if prefer else []) + [("id", "ascending")]
        order = pc.sort_indices(told, sort_keys=keys).to_numpy()
        number = np.empty(len(order), np.int64)
        number[order] = np.arange(len(order))
        return cls(told["id"].combine_chunks().take(order), number, folder, bands)

    def pairs(self) -> Pairs:
        """Pairs that agree in a band: each document with the first, and with the nearest before it, of
        those that agree."""
        known = np.empty(0, np.uint64)
        for band in range(self.bands):
            told = np.fromfile(self.folder / f"{band:03d}.bin", BAND)
            number, key = self.number[told["document"]], told["key"]
            order = np.lexsort((number, key))
            number, key = number[order], key[order]
            begins = np.r_[True, key[1:] != key[:-1]] if len(key) else np.empty(0, bool)
            first = number[begins][np.cumsum(begins) - 1]
            later = np.flatnonzero(~begins)
            found = [_packed(other, number[later]) for other in (first[later], number[later - 1])]
            known = np.unique(np.concatenate([known, *found]))
        return np.stack([known >> np.uint64(32), known & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _packed(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.uint64]:
    return first.astype(np.uint64) << np.uint64(32) | second.astype(np.uint64)


def _check_numbers(told: pa.Table, prefer: str, method: str) -> None:
    kind = told["prefer"].type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"{method} prefers by the column {prefer!r}; it holds {kind}, not numbers.")
    if pa.types.is_floating(kind) and pc.any(pc.is_nan(told["prefer"])).as_py():
        raise UserError(f"{method} prefers by the column {prefer!r}, which holds NaN: the method that wrote "
                        "it went wrong.")


def _write(rows: DataFrame, ngram: int, bands: int, per_band: int, prefer: str, seed: int,
           folder: Path) -> None:
    from daft.functions import length, minhash, normalize, regexp_replace

    from trainwright.corpus.documents import stream
    from trainwright.corpus.streaming import owned
    spaced = regexp_replace(rows["text"].fill_null(""), f"([{SPACELESS}])", " $1 ")
    said = regexp_replace(spaced, r"[^\p{L}\p{M}\p{N}_]+", " ")
    plain = normalize(said, lowercase=True, nfd_unicode=True, white_space=True)
    columns: list[Any] = [rows["id"], *([rows[prefer].alias("prefer")] if prefer else [])]
    hashed = minhash(plain, num_hashes=bands * per_band, ngram_size=ngram, seed=1 + seed % (1 << 31))
    table = rows.select(*columns, hashed.alias("hashes"), (length(plain) > 0).alias("said"))
    ids, at = [], 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{band:03d}.bin", "wb")) for band in range(bands)]
        for batch in stream(table):
            said = batch["said"].to_numpy(zero_copy_only=False)
            keys = _keys(batch["hashes"], bands, per_band)
            documents = at + np.flatnonzero(said)
            for band, file in enumerate(files):
                told = np.empty(len(documents), BAND)
                told["document"], told["key"] = documents, keys[said, band]
                file.write(told.tobytes())
            ids.append(owned(batch.select(["id", *(["prefer"] if prefer else [])])))
            at += len(batch)
    schema = table.exclude("hashes", "said").schema().to_pyarrow_schema()
    pq.write_table(pa.Table.from_batches([b.cast(schema) for b in ids], schema), folder / "ids.parquet")


def _keys(hashes: Any, bands: int, per_band: int) -> NDArray[np.uint64]:
    """[documents, bands]: one number for the hashes of a band."""
    flat = hashes.flatten().to_numpy(zero_copy_only=False).astype(np.uint64)
    flat = flat.reshape(len(hashes), bands, per_band)
    out = np.zeros(flat.shape[:2], np.uint64)
    for i in range(per_band):
        out = (out ^ flat[:, :, i]) * FACTOR
        out ^= out >> np.uint64(29)
    return out


def verified(rows: DataFrame, ctx: Context, found: Signatures, pairs: Pairs, ngram: int,
             threshold: float) -> Pairs:
    """The pairs whose true resemblance is at least ``threshold``. Shingles are in the stage's scratch
    folder, not in memory."""
    assert ctx.folder is not None
    if not len(pairs):
        return pairs
    wanted = np.unique(pairs)
    begin, end = np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.int64)
    file, at = ctx.folder / "shingles.bin", 0
    names = found.ids.take(wanted)
    with open(file, "wb") as out:
        for place, text in _texts(rows, names):
            part = shingles(text, ngram)
            part.tofile(out)
            begin[place], end[place] = at, (at := at + len(part))
    if not at:
        return pairs[:0]
    a, b = (np.searchsorted(wanted, pairs[:, side]) for side in (0, 1))
    with open(file, "rb", buffering=0) as told:
        # read, not mapped: pages of a map count as memory in use
        def of(place: int) -> Hashes:
            told.seek(8 * int(begin[place]))
            return np.frombuffer(told.read(8 * int(end[place] - begin[place])), np.uint64)
        near = [jaccard(of(i), of(j)) >= threshold for i, j in zip(a, b, strict=True)]
    file.unlink()
    return pairs[np.array(near)]


def _texts(rows: DataFrame, names: pa.Array) -> Iterator[tuple[int, str]]:
    """Places in ``names`` and texts, of those documents alone."""
    place_of = {name: place for place, name in enumerate(names.to_pylist())}
    for batch in texts(rows):
        found = [(place_of[name], row)
                 for row, name in enumerate(batch["id"].to_pylist()) if name in place_of]
        for place, row in found:
            yield place, batch["text"][row].as_py()


def clusters(pairs: Pairs, documents: int) -> NDArray[np.int64]:
    """For each document the number of its cluster: all documents connected to it, directly or through
    others."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components
    ones = np.ones(len(pairs), dtype=np.int8)
    graph = coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(documents, documents))
    return connected_components(graph, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]


def others(cluster: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """All documents but the first of each cluster, and of each of them that first one."""
    _, first, which = np.unique(cluster, return_index=True, return_inverse=True)
    stays = first[which]
    rest = np.flatnonzero(stays != np.arange(len(cluster)))
    return rest, stays[rest]
