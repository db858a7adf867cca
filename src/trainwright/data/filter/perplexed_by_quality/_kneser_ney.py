"""An n-gram model by interpolated modified Kneser-Ney smoothing, written in the ARPA format of KenLM.

"An Empirical Study of Smoothing Techniques for Language Modeling" (Chen and Goodman, 1998), with the
conventions of KenLM's estimator ("Scalable Modified Kneser-Ney Language Model Estimation", Heafield and
others, 2013). With a(·) the count of an n-gram that has the highest order or begins with <s>, and otherwise
the number of different words before it,

    p(w | h) = (a(h w) - D(a(h w))) / sum_v a(h v)  +  gamma(h) p(w | h without its first word)
    gamma(h) = sum_v D(a(h v)) / sum_v a(h v)
    p(w)     = … + gamma() / V                  V: words with <unk> and </s>, without <s>
    D(j)     = j - (j + 1) Y n_(j+1) / n_j      j = 1, 2, 3 and more;  n_j n-grams with a = j
    Y        = n_1 / (n_1 + 2 n_2)

in each order. For a text too small for that, D = 0.5, 1, 1.5. Nothing is pruned.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"
FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])
"""Discounts of a text that is too small to estimate them."""
NEVER = -99.0
"""The logarithm that ARPA gives <s>, which is never predicted."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass
class Grams:
    """The different n-grams of one order."""

    words: Ints
    """[n-grams, order]: numbers of the words."""
    prefix: Ints
    """Which n-gram of the order below is all but its last word."""
    suffix: Ints
    """And which all but its first."""
    count: Ints


def write(sentences: Iterable[Sequence[str]], order: int, file: Path) -> None:
    """Estimate the model of ``sentences`` (lists of words without space in them) and write it; never half
    a file.

    Raises:
        ValueError: there is no word.
    """
    vocabulary, stream, place = _numbered(sentences)
    if len(vocabulary) == 3:
        raise ValueError("there is no word to estimate a model from")
    grams = _grams(stream, place, len(vocabulary), order)
    probability, backoff = _estimate(grams)
    new = file.with_name(f"{file.name}.{os.getpid()}")
    with open(new, "w", encoding="utf-8", newline="\n") as out:
        out.writelines(_arpa(list(vocabulary), grams, probability, backoff))
    os.replace(new, file)


def _numbered(sentences: Iterable[Sequence[str]]) -> tuple[dict[str, int], Ints, Ints]:
    """Numbers of the words, all sentences in a row with their ends, and the place of each word in its
    sentence."""
    vocabulary = {UNKNOWN: 0, BEGIN: 1, END: 2}
    stream: list[int] = []
    sizes: list[int] = []
    for words in sentences:
        stream += [1, *(vocabulary.setdefault(word, len(vocabulary)) for word in words), 2]
        sizes.append(len(words) + 2)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes) if sizes else np.empty(0, np.int64)
    place = np.arange(len(stream)) - starts
    return vocabulary, np.array(stream, dtype=np.int64), place.astype(np.int64)


def _grams(stream: Ints, place: Ints, words: int, order: int) -> list[Grams]:
    """The n-grams of all orders; those of one word are the vocabulary."""
    none = np.empty(0, np.int64)
    found = [Grams(np.arange(words)[:, None], none, none, np.bincount(stream, minlength=words))]
    here = stream
    for k in range(2, order + 1):
        ends = np.flatnonzero(place >= k - 1)
        below = found[-1]
        key = here[ends - 1] * len(below.count) + here[ends]
        known, which, count = np.unique(key, return_inverse=True, return_counts=True)
        prefix, suffix = known // len(below.count), known % len(below.count)
        found.append(Grams(np.concatenate([below.words[prefix], below.words[suffix][:, -1:]], axis=1),
                           prefix, suffix, count))
        here = np.full(len(stream), -1)
        here[ends] = which
    return found


def _adjusted(grams: list[Grams], k: int) -> Ints:
    """a(·) of the n-grams of order ``k + 1``; 0 for <s> and <unk>, which are never counted."""
    own = grams[k]
    adjusted = own.count.copy()
    if k + 1 < len(grams):
        preceded = np.bincount(grams[k + 1].suffix, minlength=len(own.count))
        adjusted = np.where(own.words[:, 0] == 1, own.count, preceded)
    if k == 0:
        adjusted[:2] = 0
    return adjusted


def discounts(adjusted: Ints) -> Floats:
    """D(0), D(1), D(2), D(3 and more)."""
    n = np.bincount(np.minimum(adjusted, 5), minlength=6).astype(float)
    if not n[1:4].all():
        return FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    found = np.array([0.0, *(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))])
    return found if (found >= 0).all() and (found <= np.arange(4)).all() else FALLBACK


def _estimate(grams: list[Grams]) -> tuple[list[Floats], list[Floats]]:
    """Probabilities of all orders, and the backoff weights of all but the highest."""
    probability: list[Floats] = []
    backoff: list[Floats] = []
    for k, own in enumerate(grams):
        adjusted = _adjusted(grams, k)
        less = discounts(adjusted)[np.minimum(adjusted, 3)]
        if k == 0:
            total = adjusted.sum()
            found = (adjusted - less) / total + less.sum() / total / (len(adjusted) - 1)
        else:
            many = len(grams[k - 1].count)
            total = np.bincount(own.prefix, adjusted, many)
            gamma = np.divide(np.bincount(own.prefix, less, many), total, where=total > 0, out=np.ones(many))
            found = (adjusted - less) / total[own.prefix] + gamma[own.prefix] * probability[-1][own.suffix]
            backoff.append(gamma)
        probability.append(found)
    return probability, backoff


def _arpa(words: list[str], grams: list[Grams], probability: list[Floats],
          backoff: list[Floats]) -> Iterator[str]:
    yield "\\data\\\n"
    yield from (f"ngram {k + 1}={len(own.count)}\n" for k, own in enumerate(grams))
    for k, own in enumerate(grams):
        yield f"\n\\{k + 1}-grams:\n"
        chance = np.log10(probability[k])
        if k == 0:
            chance[1] = NEVER
        weight = np.log10(backoff[k]) if k < len(backoff) else None
        for i, row in enumerate(own.words.tolist()):
            said = " ".join([words[w] for w in row])
            backs_off = "" if weight is None else f"\t{weight[i]:.8g}"
            yield f"{chance[i]:.8g}\t{said}{backs_off}\n"
    yield "\n\\end\\\n"
