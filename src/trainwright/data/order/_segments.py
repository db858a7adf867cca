"""Segments of a text and how bad each is: the lines of it by patterns, or the whole document by a column."""
from __future__ import annotations

import re
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.rows import SHARD


class Text(NamedTuple):
    """A document's part of a row, and the token behind it (0 where that is not known)."""

    at: int
    number: int
    tokens: list[int]
    learned: list[bool]
    """Of each token whether it is a target; of the first whether it would be one if something stood before it."""
    address: list[int]


def texts(batch: Batch, row: int, folder: Path) -> list[Text]:
    """The texts of a row, without its padding."""
    ids, targets, documents, address = (batch[n][row].tolist() for n in ("input_ids", "targets", "document", "address"))
    found = []
    for number, group in groupby(range(len(ids)), key=documents.__getitem__):
        places = list(group)
        at, end = places[0], places[-1] + 1
        if number >= 0:
            begins = address[at] in starts_of(folder) and bool(open_corpus(folder).read_mask(*divmod(address[at], SHARD), 1)[0])
            learned = [begins, *(t != UNTRAINED for t in targets[at:end])]
            found.append(Text(at, number, [*ids[at:end], max(0, targets[end - 1])], learned, [*address[at:end], -1]))
    return found


@lru_cache(maxsize=4)
def starts_of(folder: Path) -> frozenset[int]:
    """Addresses of the documents' first tokens."""
    return frozenset(_starts(folder)[0].tolist())


def _starts(folder: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Addresses of the documents' first tokens, and their ids."""
    index = pq.read_table(folder / "tokens" / "index.parquet", columns=["id", "shard", "offset"])
    starts = index["shard"].to_numpy().astype(np.int64) * SHARD + index["offset"].to_numpy().astype(np.int64)
    return starts, index["id"].to_pylist()


class Scored(NamedTuple):
    """A score of all documents of a corpus."""

    starts: NDArray[np.int64]
    """Addresses of the documents' first tokens, in order."""
    score: NDArray[np.float64]
    """NaN where a document has none."""

    def at(self, address: int) -> float:
        return float(self.score[int(np.searchsorted(self.starts, address, side="right")) - 1])


@lru_cache(maxsize=4)
def scores_of(folder: Path, column: str) -> Scored:
    """A column of the documents of a corpus, read once in a process.

    Raises:
        UserError: no such column, one that holds no numbers or no score at all, a NaN.
    """
    files = sorted((folder / "documents").glob("*.parquet"))
    schema = pq.read_schema(files[0])
    if column not in schema.names:
        raise UserError(f"phf reads the column {column!r} of the documents, which the corpus has not"
                        f"{suggest(column, schema.names)}: put what writes it into the corpus' stage.")
    kind = schema.field(column).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"phf reads the column {column!r} as a score; it holds {kind}, not numbers.")
    table = pa.concat_tables([pq.read_table(f, columns=["id", column]) for f in files])
    told = dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
    if any(v is not None and np.isnan(v) for v in told.values()):
        raise UserError(f"phf: documents have NaN as {column!r}: the method that wrote it went wrong.")
    if all(v is None for v in told.values()):
        raise UserError(f"phf: no document has a score in {column!r}.")
    starts, names = _starts(folder)
    score = np.array([np.nan if (v := told.get(name)) is None else float(v) for name in names])
    order = np.argsort(starts, kind="stable")
    return Scored(starts[order], score[order])


@lru_cache(maxsize=4)
def line_ends(folder: Path) -> frozenset[int]:
    """The tokens with which a line may end."""
    tokenizer = open_corpus(folder).tokenizer
    return frozenset(i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i]))


def lines(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The numbers of tokens of the lines, each with what ends it."""
    stops = [i + 1 for i, token in enumerate(tokens) if token in ends]
    edges = [0, *stops, *([len(tokens)] if not stops or stops[-1] < len(tokens) else [])]
    return [b - a for a, b in pairwise(edges)]


def badness(text: str, patterns: list[re.Pattern[str]]) -> float:
    """Characters in what the patterns find, as a share of all; what two of them find counts twice."""
    return sum(len(m[0]) for p in patterns for m in p.finditer(text)) / max(1, len(text))


def judged(text: Text, folder: Path, column: str, patterns: tuple[str, ...]) -> list[tuple[int, float]]:
    """The segments of a text: numbers of tokens, and badness (NaN where it is not known)."""
    if column:
        return [(len(text.tokens), scores_of(folder, column).at(text.address[0]))]
    tokenizer: Any = open_corpus(folder).tokenizer
    wanted, out, at = [re.compile(p) for p in patterns], list[tuple[int, float]](), 0
    for size in lines(text.tokens, line_ends(folder)):
        out.append((size, badness(str(tokenizer.decode(text.tokens[at:at + size], skip_special_tokens=True)), wanted)))
        at += size
    return out
