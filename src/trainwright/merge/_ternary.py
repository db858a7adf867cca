"""A file of numbers that are zero, or plus or minus one and the same: where they are, and their signs.

The gaps between them are near to geometric, for which a Golomb code is the shortest: with a parameter b, a
gap g is the g >> b in unary (as many ones, then a zero) and its lower b bits. Each piece of numbers is a
block of its own: how many there are, b, and three streams of bits (unary parts, lower bits, signs), which are
read back without going from bit to bit.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from trainwright.core.files import expected

HEAD = struct.Struct("<8sfQ")
"""Name of the format, the number, how many entries there are."""
BLOCK = struct.Struct("<IIBII")
"""Entries, how many are not zero, b, bytes of the unary parts and of the lower bits."""
MAGIC = b"TWTERN01"


def write(file: Path, number: float, total: int, pieces: Iterable[Tensor]) -> int:
    """Write the signs (-1, 0, 1) of ``total`` entries, times ``number``; returns the bytes of the file."""
    with open(file, "wb") as out:
        out.write(HEAD.pack(MAGIC, number, total))
        for piece in pieces:
            out.write(_encoded(piece.to(torch.int8).numpy()))
    return file.stat().st_size


def read(file: Path) -> tuple[float, int, Iterator[Tensor]]:
    """The number, how many entries there are, and their signs (int8), in the pieces that were written.

    Raises:
        UserError: the file is no such file, or damaged.
    """
    with expected(file), open(file, "rb") as opened:
        magic, number, total = _unpacked(HEAD, opened)
        if magic != MAGIC:
            raise ValueError("it begins otherwise")
    return number, total, _pieces(file, total)


def _pieces(file: Path, total: int) -> Iterator[Tensor]:
    with expected(file), open(file, "rb") as opened:
        opened.seek(HEAD.size)
        while total > 0:
            entries, kept, b, unary, lower = _unpacked(BLOCK, opened)
            streams = [opened.read(n) for n in (unary, lower, -(-kept // 8))]
            if entries == 0 or entries > total or b > 32:
                raise ValueError("a block has another size")
            total -= entries
            yield torch.from_numpy(_decoded(entries, kept, b, streams))


def _unpacked(form: struct.Struct, opened: BinaryIO) -> tuple[Any, ...]:
    held = opened.read(form.size)
    if len(held) != form.size:
        raise ValueError("it ends too early")
    return form.unpack(held)


def _encoded(signs: np.ndarray) -> bytes:
    at = np.flatnonzero(signs)
    gaps = np.diff(at, prepend=-1) - 1
    b = golomb(len(at) / max(1, len(signs)))
    high = gaps >> b
    unary = np.ones(int(high.sum()) + len(at), np.uint8)
    unary[np.cumsum(high + 1) - 1] = 0
    lower = (gaps[:, None] >> np.arange(b)) & 1
    streams = [np.packbits(s.astype(np.uint8).reshape(-1)).tobytes() for s in (unary, lower, signs[at] > 0)]
    return BLOCK.pack(len(signs), len(at), b, len(streams[0]), len(streams[1])) + b"".join(streams)


def _decoded(entries: int, kept: int, b: int, streams: list[bytes]) -> np.ndarray:
    unary, lower, plus = (np.unpackbits(np.frombuffer(s, np.uint8)) for s in streams)
    ends = np.flatnonzero(unary == 0)[:kept]
    high = np.diff(ends, prepend=-1) - 1
    gaps = (high << b) + (lower[:kept * b].reshape(kept, b).astype(np.int64) << np.arange(b)).sum(1)
    signs = np.zeros(entries, np.int8)
    signs[np.cumsum(gaps + 1) - 1] = np.where(plus[:kept], 1, -1)
    return signs


def golomb(share: float) -> int:
    """The b of the shortest code, where this share of entries is not zero."""
    return 0 if share <= 0 or share >= 0.5 else max(0, round(math.log2(-math.log(2) / math.log1p(-share))))


def entropy_bytes(total: int, kept: int) -> float:
    """What no code of ``kept`` places out of ``total``, their signs and one number of 16 bits is below, on
    average: total H(kept / total) + kept + 16 bits."""
    k = kept / total if total else 0.0
    h = 0.0 if k in (0.0, 1.0) else -k * math.log2(k) - (1 - k) * math.log2(1 - k)
    return (total * h + kept + 16) / 8
