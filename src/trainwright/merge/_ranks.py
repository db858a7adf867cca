"""Exact order statistics of more numbers than fit into memory, and the task vectors of whole models.

A float32, read as an integer (with the lower bits of negative ones turned over), has the order of its value.
Two passes of counting, the first by the upper 16 bits, the second by the lower 16 within the bin of the
first, so find the entry of any rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families.tensors import Reader
from trainwright.merge._tensors import PIECE

HALF = 16
"""Bits of each pass."""
BINS = 1 << HALF
Pieces = Callable[[], Iterator[list[Tensor]]]
"""Makes one or several series of numbers, a piece of each at a time, as float32."""


def of_each(pieces: Pieces, ranks: Sequence[Sequence[int]]) -> list[list[float]]:
    """For each of several series, its entries of these ranks among all sorted, of which 0 is the smallest.
    The series are gone through twice."""
    high = [torch.zeros(BINS, dtype=torch.int64) for _ in ranks]
    for held in pieces():
        for counts, piece in zip(high, held, strict=True):
            counts += torch.bincount((_keys(piece) >> HALF) + BINS // 2, minlength=BINS)
    before = [counts.cumsum(0) for counts in high]
    bins = [
        [int(torch.searchsorted(b, r, right=True)) for r in wanted]
        for b, wanted in zip(before, ranks, strict=True)
    ]
    low = [{b: torch.zeros(BINS, dtype=torch.int64) for b in found} for found in bins]
    for held in pieces():
        for inside, piece in zip(low, held, strict=True):
            keys = _keys(piece)
            for b, counts in inside.items():
                here = keys[(keys >> HALF) + BINS // 2 == b]
                counts += torch.bincount(here & (BINS - 1), minlength=BINS)
    return [
        [
            _number(b, int(torch.searchsorted(low[i][b].cumsum(0), _left(before[i], b, r), right=True)))
            for b, r in zip(bins[i], wanted, strict=True)
        ]
        for i, wanted in enumerate(ranks)
    ]


def at_ranks(pieces: Callable[[], Iterator[Tensor]], ranks: Sequence[int]) -> list[float]:
    """The same of one series."""
    return of_each(lambda: ([piece] for piece in pieces()), [ranks])[0]


def _keys(piece: Tensor) -> Tensor:
    """Whole numbers (int32) in the order of the values."""
    bits = piece.reshape(-1).view(torch.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _left(before: Tensor, b: int, rank: int) -> int:
    return rank - (int(before[b - 1]) if b else 0)


def _number(b: int, low: int) -> float:
    key = torch.tensor(((b - BINS // 2) << HALF) + low, dtype=torch.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).view(torch.float32).item()


def cut_off(pieces: Callable[[], Iterator[Tensor]], total: int, keep: float) -> float:
    """The magnitude from which on an entry is among the ``keep`` (a share) largest of ``total``; infinite
    where that is none. Entries as large as the last of them are all kept."""
    kept = int(keep * total)
    return at_ranks(pieces, [total - kept])[0] if kept else float("inf")


def slices(tensor: Tensor) -> Callable[[], Iterator[Tensor]]:
    """The magnitudes of a tensor's entries, as ``at_ranks`` wants them."""
    return lambda: (piece.abs() for piece in tensor.reshape(-1).split(PIECE))


class TaskVectors:
    """What each model of a merge is away from its base, all floating-point tensors in order, piece by piece.

    Raises:
        UserError: the recipe names no base.
    """

    def __init__(self, ctx: Context, method: str) -> None:
        if not ctx.inputs.get("base"):
            raise UserError(
                f"{method} needs the model that the others were trained from: write "
                'from = { models = […], base = "NAME" }.'
            )
        self.base = Reader(ctx.inputs["base"][0], method)
        self.models = [Reader(folder, method) for folder in ctx.inputs["models"]]
        self.names = [n for n in self.base.names if self.base.entry(n).dtype.is_floating_point]
        self.numel = sum(self.base.entry(n).numel for n in self.names)

    def pieces(self, only: Sequence[str] = ()) -> Iterator[list[Tensor]]:
        """Vectors of float32, one of each model, of all tensors or ``only`` of some."""
        for name in only or self.names:
            for start in range(0, self.base.entry(name).numel, PIECE):
                base = self.base.piece(name, start, start + PIECE).float()
                yield [m.piece(name, start, start + PIECE).float().sub_(base) for m in self.models]

    def cuts(self, keep: float, by_tensor: bool) -> dict[str, list[float]]:
        """By tensor, or of the whole model under the name ``*``: for each model the magnitude from which on
        an entry is among the ``keep`` (a share) largest; infinite where that is none."""
        found = {}
        for name, held in ({n: [n] for n in self.names} if by_tensor else {"*": self.names}).items():
            total = sum(self.base.entry(n).numel for n in held)
            kept = int(keep * total)
            ranks = [[total - kept] if kept else []] * len(self.models)
            cuts = of_each(partial(self.magnitudes, held), ranks)
            found[name] = [cut[0] if cut else float("inf") for cut in cuts]
        return found

    def magnitudes(self, only: Sequence[str] = ()) -> Iterator[list[Tensor]]:
        """The same pieces without their signs."""
        return ([piece.abs_() for piece in held] for held in self.pieces(only))

    def cosine(self) -> float:
        """Of the angle between the first two models' vectors; 0 where one of them is zero."""
        products = torch.zeros(3, dtype=torch.float64)
        for a, b, *_ in self.pieces():
            products += torch.stack([(a * b).sum(), (a * a).sum(), (b * b).sum()]).double()
        both = math.sqrt(products[1] * products[2])
        return float(products[0]) / both if both else 0.0


def check_first(known: int, given: int, method: str) -> None:
    """Refuse a method that has looked at whole models and is then given what another method made of them.

    Raises:
        UserError: it stands behind another one.
    """
    if known != given:
        raise UserError(
            f"{method} looks at the models themselves, and was given {given} tensors for {known} models: "
            "name it first in methods."
        )
