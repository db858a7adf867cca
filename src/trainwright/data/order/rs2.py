"""RS2: each epoch trains on a fresh random part of the data, with a schedule laid out for such short epochs.

"Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning" (arXiv 2305.18424). Of n examples
an epoch has k = round(fraction n), all different, in random order:

    with_replacement       each epoch draws k of all n, whatever was drawn before
    without_replacement    epochs take consecutive windows of k from a random order of all n, so all are seen
                           before any is seen again; then comes another order (if k does not divide n, the
                           last window is filled up from the beginning of its order)
    once                   one draw for all epochs: a static random subset, the paper's baseline

An example is a row, packed once (row i is the same text in every epoch). ``epochs = X`` of a stage means X
short epochs, that is X k rows, over which schedules are laid out; this is half of the method. An epoch's
last rows and the next one's first may share a step.

Not for a single pass over the data, where sampling without replacement is ordinary training. RS2 is for
budgets of several epochs, and a baseline for data selection that has a cost. Replaces ``pack`` and has its
settings.

Errors: those of ``pack``; a mixture. State: ``shared``: rows taken.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import Batch, Data, State
from trainwright.data.order.pack import Pack
from trainwright.lm.fixed_rows import FixedRows, shuffled, step_rows


class Rs2(Data):
    """Rows of a fresh random part of the data in each epoch."""

    fraction: float = 0.1
    """Part of the rows that an epoch has."""
    draw: Literal["with_replacement", "without_replacement", "once"] = "with_replacement"
    """Whether epochs may repeat rows of earlier ones, avoid them as long as there are others, or are all
    the same."""
    length: int = 512
    """Positions in a row."""
    domains: tuple[str, ...] = ()
    """Domains to take; all if none is named."""
    whole: bool | None = None
    """Never cut a document to fill a row; by default only conversations are kept whole."""
    isolate: Literal["documents", "rows"] = "documents"
    """Keep documents apart by attention or, for models that cannot, by giving each a row of its own."""
    example: ClassVar[dict[str, Any]] = {"fraction": 0.25, "length": 32}

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must be above 0 and at most 1, not {self.fraction}")
        assert self.source                                                # which refuses what pack refuses

    @cached_property
    def source(self) -> Pack:
        """What makes the rows."""
        return Pack(length=self.length, domains=self.domains, whole=self.whole, isolate=self.isolate)

    def init(self, model: nn.Module, ctx: Context) -> State:
        self.source.init(model, ctx)
        return {"shared": {"rows": 0}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        rows, shared, many = FixedRows(self.source.rows(ctx)), state["shared"], step_rows(self.name, ctx)
        size, numbers = self.size(len(rows)), []
        for number in range(shared["rows"], shared["rows"] + many):
            epoch, at = divmod(number, size)
            numbers.append(subset(self.draw, epoch, len(rows), size, ctx.seed)[at])
        shared["rows"] += many
        return rows.share(np.array(numbers), self.name, ctx)

    def epoch(self, ctx: Context) -> int:
        return self.size(len(FixedRows(self.source.rows(ctx))))

    def row_tokens(self) -> int:
        return self.length

    def preview(self, batch: Batch, ctx: Context) -> str:
        rows = len(FixedRows(self.source.rows(ctx)))
        return f"rs2: {self.size(rows):,} of {rows:,} rows an epoch\n{self.source.preview(batch, ctx)}"

    def size(self, rows: int) -> int:
        """Rows of an epoch, of so many."""
        return max(1, round(self.fraction * rows))


@lru_cache(maxsize=4)
def subset(draw: str, epoch: int, rows: int, size: int, seed: int) -> NDArray[np.int64]:
    """Which ``size`` of the ``rows`` an epoch has, in its order."""
    if draw == "with_replacement":
        return shuffled(rows, seed, f"rs2/{epoch}")[:size]
    if draw == "once":
        return shuffled(rows, seed, "rs2/0")[:size][shuffled(size, seed, f"rs2/order/{epoch}")]
    turn, window = divmod(epoch, -(-rows // size))
    return np.take(shuffled(rows, seed, f"rs2/{turn}"), np.arange(window * size, (window + 1) * size),
                   mode="wrap")
