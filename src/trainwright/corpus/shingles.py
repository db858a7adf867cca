"""Words of a text, and hashes of its runs of n words, by which near-duplicates and leaks are recognized."""
from __future__ import annotations

import functools
import re
import unicodedata
import zlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

SPACELESS = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
             "\U00020000-\U0003ffff")
"""Scripts that put no space between words (Thai, Lao, Burmese, Khmer, kana, Han), as ranges: each
character is a word."""
FACTOR = np.uint64(0x9E3779B97F4A7C15)
"""Odd, so that multiplication modulo 2^64 loses nothing."""


def words(text: str) -> list[str]:
    """Runs of letters, digits and their marks, in lower case; case, punctuation and space make no
    difference."""
    alone, word = _patterns()
    text = unicodedata.normalize("NFC", text.lower())
    spaced = alone.sub(r" \g<0> ", text) if alone.search(text) else text
    return word.findall(spaced)  # type: ignore[no-any-return]


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    marks = "".join(chr(c) for c in range(0x300, 0xFE30) if unicodedata.category(chr(c)).startswith("M"))
    return re.compile(f"[{SPACELESS}]"), re.compile(rf"[\w{marks}]+")


def places(text: str) -> list[tuple[int, int]]:
    """Where each of ``words`` stands in a text that is in NFC: its first character, and the one behind its
    last; none where they cannot be told (lower case divides its words in another way)."""
    _, word = _patterns()
    pattern = re.compile(rf"[{SPACELESS}]|(?:(?![{SPACELESS}]){word.pattern.removesuffix('+')})+")
    found = [m.span() for m in pattern.finditer(text)]
    return found if len(found) == len(words(text)) else []


def codes(text: str) -> Hashes:
    """A number for each word."""
    found = words(text)
    return np.fromiter(map(zlib.crc32, map(str.encode, found)), np.uint64, len(found))


def ngrams(codes: Hashes, n: int) -> Hashes:
    """A hash of each run of ``n`` words, in order; none where there are fewer words."""
    many = len(codes) - n + 1
    if many < 1:
        return np.empty(0, np.uint64)
    out = codes[:many].copy()
    for i in range(1, n):
        out *= FACTOR
        out += codes[i:i + many]
    return out


def shingles(text: str, n: int) -> Hashes:
    """The set of those hashes, sorted; a text of fewer than ``n`` words is one run, a text without words
    has none."""
    found = codes(text)
    return np.unique(ngrams(found, min(n, len(found)))) if len(found) else found


def jaccard(a: Hashes, b: Hashes) -> float:
    """``|a and b| / |a or b|`` of two sorted sets; 0 for two empty ones."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / max(len(a) + len(b) - shared, 1)
