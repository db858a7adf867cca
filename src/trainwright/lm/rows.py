"""From documents to rows of predictions, without state: row i of epoch e is the same whenever and
wherever it is asked for.

A document of n tokens makes n - 1 predictions: position t reads token t and is to say token t + 1.
Rows are cut from predictions, not from tokens, so that no target is lost where a row ends and no
position is spent on a last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus.tokens import Corpus, Documents, open_corpus

SHARD = 1 << 40
"""Addresses of a shard: the token at ``offset`` of shard s has the address ``s * SHARD + offset``."""


class Piece(NamedTuple):
    """``size`` predictions of a document: they read ``size + 1`` tokens from ``offset`` on."""

    shard: int
    offset: int
    size: int


@dataclass(frozen=True)
class Cut:
    """How documents become rows."""

    length: int
    whole: bool
    """Never cut a document, but at the end of one that is longer than a row."""
    alone: bool
    """One document (or part of one) a row."""


def fill(corpus: Corpus, rows: Sequence[tuple[int, Sequence[Piece]]], length: int) -> Batch:
    """A batch of rows, each the index of its domain and its pieces; what is left of a row is padding.

    Padding has document -1 and no target, and goes on with the positions of the document before it: one
    document and its padding then need no mask.
    """
    shape = len(rows), length
    ids, targets = np.zeros(shape, dtype=np.int64), np.full(shape, UNTRAINED)
    places, document = np.tile(np.arange(length), (len(rows), 1)), np.full(shape, -1)
    address = np.full(shape, -1)
    for r, (_, pieces) in enumerate(rows):
        at = 0
        for k, (shard, offset, size) in enumerate(pieces):
            tokens, end = corpus.read(shard, offset, size + 1), at + size
            ids[r, at:end], document[r, at:end] = tokens[:-1], k
            address[r, at:end] = np.arange(offset, offset + size) + shard * SHARD
            targets[r, at:end] = np.where(corpus.read_mask(shard, offset + 1, size), tokens[1:], UNTRAINED)
            places[r, at:] = np.arange(length - at)
            at = end
    domain = np.repeat(np.array([d for d, _ in rows], dtype=np.int64)[:, None], length, 1)
    arrays = {
        "input_ids": ids,
        "targets": targets,
        "position_ids": places,
        "domain": domain,
        "document": document,
        "address": address,
    }
    return {n: torch.from_numpy(a) for n, a in arrays.items()} | {"domains": corpus.domains}


class Rows:
    """All rows of a selection of documents, by domain."""

    def __init__(self, corpus: Corpus, split: str, domains: tuple[str, ...], cut: Cut, seed: int) -> None:
        self.corpus, self.cut, self.seed = corpus, cut, seed
        for name in domains:
            corpus.select(split, (name,))                                   # each that is named must be there
        found = corpus.select(split, domains)
        self.domains = {name: Domain(corpus, name, found, cut, seed)
                        for i, name in enumerate(corpus.domains) if (found.domain == i).any()}
        self.counts = np.array([d.count for d in self.domains.values()])
        self.total = int(self.counts.sum())
        self.truncated, self.lost, self.untrained = (
            sum(getattr(d, n) for d in self.domains.values()) for n in ("truncated", "lost", "untrained"))
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, dtype=np.int64))

    def natural(self, number: int) -> str:
        """The domain of a row where nothing is mixed: in each epoch, every domain has all of its
        rows, in a random order."""
        epoch, i = divmod(number, self.total)
        if self._order[0] != epoch:
            shuffled = torch.randperm(
                self.total, generator=Context(seed=self.seed).rng(f"pack/{epoch}", at=0)
            ).numpy()
            self._order = epoch, np.searchsorted(self.counts.cumsum(), shuffled, side="right")
        return list(self.domains)[self._order[1][i]]

    def batch(self, chosen: Sequence[tuple[str, int]]) -> Batch:
        """The rows with these domains and numbers within their domain."""
        rows = [(self.corpus.domains.index(name), self.domains[name].row(number)) for name, number in chosen]
        return fill(self.corpus, rows, self.cut.length) | {"packed": not self.cut.alone}


class Domain:
    """The rows of one domain. Each epoch shuffles the documents anew and has the same number of rows."""

    def __init__(self, corpus: Corpus, name: str, found: Documents, cut: Cut, seed: int) -> None:
        mine = found.domain == corpus.domains.index(name)
        shard, offset, size, trained = (
            a[mine] for a in (found.shard, found.offset, found.length - 1, found.trained)
        )
        kept = trained > 0
        self.untrained = int((~kept).sum())
        """Documents that teach nothing: a single token, or a conversation in which nobody is learned from."""
        self.truncated = int((kept & (size > cut.length)).sum()) if cut.whole else 0
        """Documents that lose what is beyond the length of a row."""
        self.lost = 0
        """Of those, the ones that lost all that was to be learned, and are left out."""
        if cut.whole:
            for i in np.flatnonzero(kept & (size > cut.length) & (trained < size)):
                kept[i] = corpus.read_mask(int(shard[i]), int(offset[i]) + 1, cut.length).any()
                self.lost += int(not kept[i])
            size = np.minimum(size, cut.length)
        if not kept.any():
            raise UserError(
                f"pack: none of the {len(kept)} documents of the domain {name!r} has a trained token "
                f"in its first {cut.length} tokens."
            )
        self.shard, self.offset, self.size = shard[kept], offset[kept], size[kept]
        self.settings, self.seed, self.name = cut, seed, name
        self._bins = best_fit(np.sort(self.size)[::-1], cut.length) if cut.whole and not cut.alone else None
        self._epoch: tuple[int, _Layout] = (0, self._layout(0))
        self.count = len(self._epoch[1].first) - 1

    def row(self, number: int) -> list[Piece]:
        """The pieces of a row, counted on over the epochs."""
        epoch, i = divmod(number, self.count)
        if self._epoch[0] != epoch:
            self._epoch = epoch, self._layout(epoch)
        layout = self._epoch[1]
        part = slice(layout.first[i], layout.first[i + 1])
        return [Piece(int(self.shard[d]), int(self.offset[d] + b), int(n))
                for d, b, n in zip(layout.document[part], layout.begin[part], layout.size[part], strict=True)]

    def _layout(self, epoch: int) -> _Layout:
        g = Context(seed=self.seed).rng(f"pack/{self.name}/{epoch}", at=0)
        order, length = torch.randperm(len(self.size), generator=g).numpy(), self.settings.length
        if self.settings.alone:
            return _separate(self.size, order, length, g)
        if self._bins is None:
            return _stream(self.size[order], order, length)
        # equal sizes change places, bins stay as full
        order = order[np.argsort(-self.size[order], kind="stable")]
        row = torch.randperm(int(self._bins.max()) + 1, generator=g).numpy()[self._bins]
        by_row = np.argsort(row, kind="stable")
        return _layout(row[by_row], order[by_row], np.zeros_like(order), self.size[order[by_row]])


class _Layout(NamedTuple):
    """The pieces of an epoch, row after row; those of row i are ``first[i]`` to ``first[i + 1]``."""

    first: np.ndarray
    document: np.ndarray
    begin: np.ndarray
    size: np.ndarray


def _layout(row: np.ndarray, document: np.ndarray, begin: np.ndarray, size: np.ndarray) -> _Layout:
    return _Layout(np.searchsorted(row, np.arange(row[-1] + 2)), document, begin, size)


def _stream(size: np.ndarray, order: np.ndarray, length: int) -> _Layout:
    """Documents one behind the other, cut wherever a row is full."""
    ends = size.cumsum()
    edges = np.union1d(ends - size, np.arange(0, ends[-1], length))
    which = np.searchsorted(ends, edges, side="right")
    return _layout(
        edges // length, order[which], edges - (ends - size)[which], np.diff(edges, append=ends[-1])
    )


def _separate(size: np.ndarray, order: np.ndarray, length: int, g: torch.Generator) -> _Layout:
    """Rows of one piece each; the pieces of a long document go to rows far apart."""
    parts = -(-size[order] // length)
    document = np.repeat(order, parts)
    begin = (np.arange(len(document)) - np.repeat(parts.cumsum() - parts, parts)) * length
    shuffled = torch.randperm(len(document), generator=g).numpy()
    document, begin = document[shuffled], begin[shuffled]
    return _layout(np.arange(len(document)), document, begin, np.minimum(size[document] - begin, length))


def best_fit(sizes: np.ndarray, length: int) -> np.ndarray:
    """The bin of each size (in falling order, none above ``length``): the fullest one
    with room, else a new one.

    The bins with the same room are a stack, and a bit of ``rooms`` says which stacks are not
    empty: a size costs one shift.
    """
    bins, stacks, rooms, made = np.empty(len(sizes), dtype=np.int64), [[] for _ in range(length + 1)], 0, 0
    for i, size in enumerate(sizes.tolist()):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            bins[i] = stacks[room].pop()
            if not stacks[room]:
                rooms ^= 1 << room
        else:
            room, bins[i], made = length, made, made + 1
        if left := room - size:
            stacks[left].append(bins[i])
            rooms |= 1 << left
    return bins


@lru_cache(maxsize=16)
def rows_of(folder: Path, split: str, domains: tuple[str, ...], cut: Cut, seed: int) -> Rows:
    """The rows of a corpus' documents, worked out once in a process."""
    return Rows(open_corpus(folder), split, domains, cut, seed)
