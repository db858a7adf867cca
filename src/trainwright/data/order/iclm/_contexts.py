"""Documents in a given order as one stream of tokens, cut into rows in which they see each other."""
from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus.tokens import Corpus, Documents, open_corpus
from trainwright.data.order.iclm import _walk
from trainwright.lm.rows import SHARD

ARRAYS = ("id", "domain", "shard", "offset", "length", "bytes", "trained")


class Stream:
    """The documents of one domain, in the order of the walk."""

    def __init__(self, corpus: Corpus, found: Documents, length: int, seed: int, domain: int) -> None:
        self.corpus, self.found, self.length, self.seed, self.domain = corpus, found, length, seed, domain
        self.ends = found.length.cumsum()
        self.count = -(-(int(self.ends[-1]) - 1) // length)
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def row(self, number: int) -> dict[str, NDArray[np.int64]]:
        """A row, counted on over the epochs; the last of a stream is filled up with padding."""
        epoch, i = divmod(number, self.count)
        if self._order[0] != epoch:
            g = Context(seed=self.seed).rng(f"iclm/{self.domain}/{epoch}", at=0)
            self._order = epoch, torch.randperm(self.count, generator=g).numpy()
        return self.window(int(self._order[1][i]) * self.length)

    def window(self, begin: int) -> dict[str, NDArray[np.int64]]:
        """The row that reads the stream from there on."""
        last = min(begin + self.length + 1, int(self.ends[-1]))
        tokens, learned, address, document = list[NDArray[np.int64]](), [], [], []
        at, d = begin, int(np.searchsorted(self.ends, begin, side="right"))
        while at < last:
            size = min(last, int(self.ends[d])) - at
            begin = self.ends[d] - self.found.length[d]
            shard, offset = int(self.found.shard[d]), int(self.found.offset[d] + at - begin)
            tokens.append(self.corpus.read(shard, offset, size))
            learned.append(self.corpus.read_mask(shard, offset, size))
            address.append(shard * SHARD + np.arange(offset, offset + size))
            document.append(np.full(size, len(document)))
            at, d = at + size, d + 1
        ids, mask = np.concatenate(tokens), np.concatenate(learned)
        filled = {"input_ids": (ids[:-1], 0), "targets": (np.where(mask[1:], ids[1:], UNTRAINED), UNTRAINED),
                  "document": (np.concatenate(document)[:-1], -1),
                  "address": (np.concatenate(address)[:-1], -1)}
        return {n: np.pad(v, (0, self.length - len(v)), constant_values=empty)
                for n, (v, empty) in filled.items()}


class Contexts:
    """All rows of a selection of documents, by domain."""

    def __init__(self, folder: Path, split: str, domains: tuple[str, ...], length: int, column: str,
                 neighbours: int,
                 near_duplicates: float, seed: int) -> None:
        self.corpus, self.length, self.seed = open_corpus(folder), length, seed
        for name in domains:
            self.corpus.select(split, (name,))                              # each that is named must be there
        found = self.corpus.select(split, domains)
        found = _part(found, np.flatnonzero(found.trained > 0))
        if not len(found):
            raise UserError("iclm: no document has a token to learn.")
        if (talks := found.trained < found.length - 1).any():
            names = ", ".join(sorted({self.corpus.domains[i] for i in found.domain[talks]}))
            raise UserError(f"iclm lays texts one behind the other, and {int(talks.sum()):,} documents of "
                            f"{names} are conversations, which are not to see each other: name other "
                            "domains, or take pack.")
        vectors, begins = _walk.read(folder, found, column, "iclm") if column else (None, None)
        self.domains: dict[str, Stream] = {}
        self.duplicates, likeness, shuffled = 0, list[float](), list[float]()
        for i, name in enumerate(self.corpus.domains):
            mine = np.flatnonzero(found.domain == i)
            if not len(mine):
                continue
            documents = _part(found, mine)
            table = vectors[mine] if vectors is not None else _walk.words(self.corpus, documents)
            path = _walk.walk(*_walk.neighbours(table, neighbours))
            starts = [begins[k] for k in mine] if begins is not None else _beginnings(self.corpus, documents)
            kept = _walk.distinct(path, starts, near_duplicates)
            self.duplicates += len(path) - len(kept)
            likeness += _alike(table, kept)
            generator = Context(seed=seed).rng("iclm/shuffled", at=0)
            shuffled += _alike(table, torch.randperm(len(kept), generator=generator).numpy())
            self.domains[name] = Stream(self.corpus, _part(documents, kept), length, seed, i)
        self.likeness, self.random = (float(np.mean(v)) if v else 0.0 for v in (likeness, shuffled))
        """Mean similarity of documents that follow one another in the walk, and in random order."""
        self.counts = np.array([d.count for d in self.domains.values()])
        self.total = int(self.counts.sum())
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, dtype=np.int64))

    def natural(self, number: int) -> str:
        """The domain of a row where nothing is mixed: in each epoch, every domain has all of its rows, in
        a random order."""
        epoch, i = divmod(number, self.total)
        if self._order[0] != epoch:
            generator = Context(seed=self.seed).rng(f"iclm/{epoch}", at=0)
            shuffled = torch.randperm(self.total, generator=generator).numpy()
            self._order = epoch, np.searchsorted(self.counts.cumsum(), shuffled, side="right")
        return list(self.domains)[self._order[1][i]]

    def batch(self, chosen: list[tuple[str, int]]) -> Batch:
        """The rows with these domains and numbers within their domain."""
        rows = [self.domains[name].row(number) for name, number in chosen]
        made = {n: torch.from_numpy(np.stack([row[n] for row in rows]))
                for n in ("input_ids", "targets", "document", "address")}
        shape = made["input_ids"].shape
        domain = torch.tensor([self.domains[name].domain for name, _ in chosen])
        places = torch.arange(self.length)
        return made | {"position_ids": places.expand(shape).contiguous(),
                       "domain": domain[:, None].expand(shape).contiguous(),
                       "domains": self.corpus.domains}


def _part(found: Documents, which: NDArray[np.int64]) -> Documents:
    return Documents(*(getattr(found, name)[which] for name in ARRAYS))


def _beginnings(corpus: Corpus, found: Documents) -> list[str]:
    """The first 100 characters of each document, as its tokens say them."""
    tokenizer = corpus.tokenizer
    return [tokenizer.decode(corpus.read(int(s), int(o), min(int(n), 100)), skip_special_tokens=True)[:100]
            for s, o, n in zip(found.shard, found.offset, found.length, strict=True)]


def _alike(table: NDArray[np.float32], path: NDArray[np.int64]) -> list[float]:
    """Similarities of the rows that follow one another in a path."""
    before, after = table[path[:-1]], table[path[1:]]
    both = before * after if isinstance(table, np.ndarray) else before.multiply(after)
    return np.asarray(both.sum(1)).ravel().tolist()


@lru_cache(maxsize=8)
def contexts_of(folder: Path, split: str, domains: tuple[str, ...], length: int, column: str, neighbours: int,
                near_duplicates: float, seed: int) -> Contexts:
    """The rows of a corpus' documents, worked out once in a process."""
    return Contexts(folder, split, domains, length, column, neighbours, near_duplicates, seed)
