"""Exact order statistics of more numbers than fit into memory, and the task vectors of whole models.

A non-negative float32, read as an integer, has the order of its value. Two passes of counting, the first by
the upper 16 bits, the second by the lower 15 within the bin of the first, so find the entry of any rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families.tensors import Reader

PIECE = 1 << 20
"""Entries that are looked at together."""
LOW = 15
"""Bits of the second pass."""


def at_ranks(pieces: Callable[[], Iterator[Tensor]], ranks: Sequence[int]) -> list[float]:
    """The entries of these ranks among all sorted, of which 0 is the smallest.

    Args:
        pieces: makes the numbers, as float32 tensors without a negative one; they are gone through twice.
    """
    high = torch.zeros(1 << 16, dtype=torch.int64)
    for piece in pieces():
        high += torch.bincount(_bits(piece) >> LOW, minlength=len(high))
    before = high.cumsum(0)
    bins = [int(torch.searchsorted(before, rank, right=True)) for rank in ranks]
    low = {b: torch.zeros(1 << LOW, dtype=torch.int64) for b in bins}
    for piece in pieces():
        bits = _bits(piece)
        for b, counts in low.items():
            counts += torch.bincount(bits[bits >> LOW == b] & ((1 << LOW) - 1), minlength=len(counts))
    found = []
    for rank, b in zip(ranks, bins, strict=True):
        left = rank - (int(before[b - 1]) if b else 0)
        inside = int(torch.searchsorted(low[b].cumsum(0), left, right=True))
        found.append(torch.tensor((b << LOW) + inside, dtype=torch.int32).view(torch.float32).item())
    return found


def _bits(piece: Tensor) -> Tensor:
    return piece.reshape(-1).view(torch.int32)


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

    def one(self, model: int, only: Sequence[str] = ()) -> Iterator[Tensor]:
        """Those of one model."""
        for name in only or self.names:
            for start in range(0, self.base.entry(name).numel, PIECE):
                base = self.base.piece(name, start, start + PIECE).float()
                yield self.models[model].piece(name, start, start + PIECE).float().sub_(base)

    def magnitudes(self, model: int, only: Sequence[str] = ()) -> Callable[[], Iterator[Tensor]]:
        """Those of one model without their signs, as ``at_ranks`` wants them."""
        return lambda: (piece.abs_() for piece in self.one(model, only))

    def cuts(self, keep: float, by_tensor: bool) -> dict[str, list[float]]:
        """By tensor, or of the whole model under the name ``*``: for each model the magnitude from which on
        an entry is among the ``keep`` (a share) largest."""
        groups = {n: [n] for n in self.names} if by_tensor else {"*": self.names}
        models = range(len(self.models))
        return {
            name: [
                cut_off(self.magnitudes(i, held), sum(self.base.entry(n).numel for n in held), keep)
                for i in models
            ]
            for name, held in groups.items()
        }


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
