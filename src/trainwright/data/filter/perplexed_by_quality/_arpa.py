"""Perplexity under an n-gram model in the ARPA format, many sentences at once: the same numbers as KenLM's.

A word is predicted by the longest n-gram of the model that ends with it, times the backoff weights of the
longer contexts:

    p(w | h) = p(h w)  if the model has h w,  else  b(h) p(w | h without its first word)
    b(h) = 1  if the model lacks h

<s> precedes a sentence and is not predicted; </s> is, and counts as a word; an unknown word is <unk>.
"""
from __future__ import annotations

import gzip
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from trainwright.core.errors import UserError
from trainwright.corpus.shingles import FACTOR, Hashes
from trainwright.data.filter.perplexed_by_quality._kneser_ney import BEGIN, END, UNKNOWN, Floats, Ints


@dataclass
class Order:
    """The n-grams of one order, sorted by a hash of the numbers of their words."""

    key: Hashes
    probability: Floats
    """log10."""
    backoff: Floats


@dataclass
class Model:
    """A model in memory: about 24 bytes an n-gram, and the words."""

    words: dict[str, int]
    orders: list[Order]

    def logs(self, sentences: Sequence[Sequence[str]]) -> tuple[Floats, Ints]:
        """Of each sentence log10 p, and how many words that is about, </s> included."""
        sizes = np.array([len(s) + 2 for s in sentences], dtype=np.int64)
        if not len(sizes):
            return np.empty(0), sizes
        unknown = self.words[UNKNOWN]
        begin, end = self.words[BEGIN], self.words[END]
        number = self.words.get
        ids = np.array([i for s in sentences for i in (begin, *(number(w, unknown) for w in s), end)],
                       dtype=np.uint64)
        starts = np.cumsum(sizes) - sizes
        place = np.arange(len(ids)) - np.repeat(starts, sizes)
        found = self._each(ids, place)
        found[starts] = 0
        return np.add.reduceat(found, starts), sizes - 1

    def _each(self, ids: Hashes, place: Ints) -> Floats:
        """log10 p of each word after those before it in its sentence."""
        first = self.orders[0]
        at = np.searchsorted(first.key, ids)
        found, backoff = first.probability[at].copy(), first.backoff[at]
        key, powers = ids.copy(), FACTOR ** np.arange(len(self.orders), dtype=np.uint64)
        for k, order in enumerate(self.orders[1:], 2):
            ends = np.flatnonzero(place >= k - 1)
            key[ends] += ids[ends - k + 1] * powers[k - 1]
            at = np.searchsorted(order.key, key[ends])
            at[at == len(order.key)] = 0
            known = order.key[at] == key[ends] if len(order.key) else np.zeros(len(ends), bool)
            rest = ends[~known]
            longer = found[rest] + backoff[rest - 1]
            found[rest] = longer
            found[ends[known]] = order.probability[at[known]]
            backoff = np.zeros(len(ids))
            backoff[ends[known]] = order.backoff[at[known]]
        return found

    def perplexity(self, sentences: Sequence[Sequence[str]]) -> float:
        """10 ^ (- log10 p / words) of all of them together; NaN for none."""
        logs, words = self.logs(sentences)
        return float(10 ** (-logs.sum() / words.sum())) if len(words) else float("nan")


def read(file: Path) -> Model:
    """A model in the ARPA format, also as ``.gz``.

    Raises:
        UserError: no such file, another format, no ``<unk>`` (without it an unknown word has no probability).
    """
    if not file.is_file():
        raise UserError(f"there is no model {file}.")
    words: dict[str, int] = {}
    orders: list[Order] = []
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") if file.suffix == ".gz" else \
                open(file, encoding="utf-8", newline="\n") as lines:
            for size, count in enumerate(_sizes(lines), 1):
                orders.append(_order(lines, size, count, words))
    except (OSError, EOFError, ValueError, KeyError) as error:
        raise UserError(f"{file} is no n-gram model in the ARPA format: {error}.") from None
    if not orders or not {UNKNOWN, BEGIN, END} <= set(words):
        raise UserError(f"{file} is no n-gram model that can be used: it lacks one of {UNKNOWN}, {BEGIN}, "
                        f"{END}.")
    return Model(words, orders)


def _sizes(lines: IO[str]) -> list[int]:
    for line in lines:
        if line.strip() == "\\data\\":
            break
    sizes = []
    for line in lines:
        if not line.startswith("ngram "):
            break
        sizes.append(int(line.partition("=")[2]))
    return sizes


def _order(lines: IO[str], size: int, count: int, words: dict[str, int]) -> Order:
    title = next((line.strip() for line in lines if line.strip()), "no more lines")
    if title != f"\\{size}-grams:":
        raise ValueError(f"{title[:40]!r} stands where the {size}-grams should begin")
    ids, probability, backoff = np.zeros((count, size), np.uint64), np.zeros(count), np.zeros(count)
    for i, (chance, said, weight) in enumerate(_rows(lines, size, count)):
        if size == 1:
            words.setdefault(said[0], len(words))
        ids[i], probability[i], backoff[i] = [words[w] for w in said], chance, weight
    key = (ids * FACTOR ** np.arange(size, dtype=np.uint64)[::-1]).sum(1)
    by = np.argsort(key, kind="stable")
    return Order(key[by], probability[by], backoff[by])


def _rows(lines: IO[str], size: int, count: int) -> Iterator[tuple[float, list[str], float]]:
    for i in range(count):
        line = next(lines, "").rstrip("\r\n")
        parts = line.replace("\t", " ").split(" ")
        if len(parts) not in (size + 1, size + 2):
            raise ValueError(f"{size}-gram {i + 1:,} of {count:,} reads {line[:60]!r}")
        yield float(parts[0]), parts[1:size + 1], float(parts[size + 1]) if len(parts) == size + 2 else 0.0
