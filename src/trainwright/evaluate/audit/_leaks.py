"""Texts of an evaluation that documents have, also in another order, other lines, or slightly other words.

Of each text the set of its runs of three words is taken (case, punctuation, lines and space make no
difference). Runs that a tenth of the texts share are templates and do not count. A document is looked at in
windows of 512 words, one every 256, and

    share(text) = the largest part of the text's runs that one window has

``LEAKED`` of them and more is a leak: a reordered or a lightly reworded text keeps that many, while texts
that merely speak of the same things share a few. Of a long text its first 256 words count.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trainwright.corpus.shingles import codes, ngrams

WORDS = 3
"""Words of a run: the more, the fewer survive when words are exchanged."""
LEAKED = 0.35
"""Share of its runs from which on a text counts as leaked."""
SHORTEST = 8
"""Runs that a text must have left to be searched for."""
WINDOW, FIRST = 512, 256
COMMON = 0.1
"""Share of the texts that have a run from which on it is a template; where there are 20 texts or more."""


class Leak(NamedTuple):
    """A text of the evaluation, the document that has the most of it, and how much."""

    text: int
    document: str
    share: float


class Leaks:
    """Texts that are searched for."""

    def __init__(self, texts: Sequence[str]) -> None:
        runs = [np.unique(ngrams(codes(text)[:FIRST], WORDS)) for text in texts]
        if len(runs) >= 20:
            every, counts = np.unique(np.concatenate(runs), return_counts=True)
            common = every[counts >= max(2, COMMON * len(runs))]
            runs = [np.setdiff1d(one, common, assume_unique=True) for one in runs]
        self.sizes = np.array([len(one) for one in runs])
        self.searched = self.sizes >= SHORTEST
        """Which of them are long enough."""
        owners = np.repeat(np.arange(len(runs)), self.sizes)
        flat = np.concatenate(runs) if runs else np.zeros(0, np.uint64)
        order = np.argsort(flat, kind="stable")
        self._runs, self._owners = flat[order], owners[order]
        self.shares = np.zeros(len(runs))
        self.documents = [""] * len(runs)

    def search(self, documents: Iterable[tuple[str, str]]) -> int:
        """Look for all texts in documents, given as id and text; returns how many documents were read."""
        read = 0
        for name, text in documents:
            read += 1
            found = codes(text or "")
            for begin in range(0, max(1, len(found) - WINDOW // 2), WINDOW // 2):
                self._look(name, np.unique(ngrams(found[begin:begin + WINDOW], WORDS)))
        return read

    def _look(self, name: str, runs: NDArray[np.uint64]) -> None:
        first = np.searchsorted(self._runs, runs, side="left")
        many = np.searchsorted(self._runs, runs, side="right") - first
        if not many.any():
            return
        at = np.repeat(first, many) + np.arange(many.sum()) - np.repeat(many.cumsum() - many, many)
        hits = np.bincount(self._owners[at], minlength=len(self.sizes))
        shares = np.where(self.searched, hits / np.maximum(self.sizes, 1), 0.0)
        for i in np.flatnonzero(shares > self.shares):
            self.shares[i], self.documents[i] = shares[i], name

    def found(self) -> list[Leak]:
        """The texts that are leaked, the most complete first."""
        hits = np.flatnonzero(self.shares >= LEAKED)
        return sorted((Leak(int(i), self.documents[i], float(self.shares[i])) for i in hits),
                      key=lambda leak: (-leak.share, leak.text))
