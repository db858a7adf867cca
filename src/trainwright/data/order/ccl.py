"""Cyclical curriculum learning: the part of the data in use, mostly easy texts, grows and shrinks in cycles.

"Cyclical Curriculum Learning" (arXiv 2202.05531). A model trained in the ordinary way scores each of n
examples by 1 / loss. Round i draws int(n S_i) different examples, one after the other with probabilities
proportional to their scores, and trains one pass over them in random order; with a = ``multiplier``

    S_0 = start
    S_i+1 = min(S_i / a, end)  until end is reached,   then  max(S_i a, start)  until start is,   and so on

A small part is a curriculum, all of it ordinary training. The published 0.25, 1 and 0.5 give 0.25, 0.5, 1,
0.5, 0.25 … Rounds continue until the stage ends; ``epochs = T`` means T n rows, those of T ordinary epochs,
in more than T rounds.

An example is a row, packed once, and its loss the mean over its trained tokens in nats. A loss below 0.001
counts as that, since a memorized text would otherwise be drawn in every round. The scoring model is
``from.reference``: train it on the same data first, and count its cost. Scores of the model in training
would be another method. Every rank scores all rows. Replaces ``pack`` and has its settings.

Not for a single pass over the data: one small round may be all there is.

Errors: those of ``pack``; no ``from.reference``; a mixture. State: ``shared``: rows taken, losses, the
round's rows. """
from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.core.stage import Role
from trainwright.data.order.pack import Pack
from trainwright.lm.fixed_rows import FixedRows, step_rows
from trainwright.lm.losses import evaluating, token_losses

LEAST = 1e-3
"""Loss below which all rows are equally easy."""


class Ccl(Data):
    """Rows of a random part of the data that grows and shrinks in cycles, the easy ones more often."""

    start: float = 0.25
    """Smallest part of the rows that a round has, with which training begins."""
    end: float = 1.0
    """Largest part of the rows that a round has."""
    multiplier: float = 0.5
    """Factor between the sizes of two rounds, below 1."""
    length: int = 512
    """Positions in a row."""
    domains: tuple[str, ...] = ()
    """Domains to take; all if none is named."""
    whole: bool | None = None
    """Never cut a document to fill a row; by default only conversations are kept whole."""
    isolate: Literal["documents", "rows"] = "documents"
    """Keep documents apart by attention or, for models that cannot, by giving each a row of its own."""
    batch_size: int = 16
    """Rows that are scored at once."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role(needed=True)}
    example: ClassVar[dict[str, Any]] = {"length": 64}

    def __post_init__(self) -> None:
        if not 0 < self.start <= self.end <= 1:
            raise ValueError("start and end must be above 0, at most 1, and in this order, not "
                             f"{self.start} and {self.end}")
        if not 0 < self.multiplier < 1:
            raise ValueError(f"multiplier must be above 0 and below 1, not {self.multiplier}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be positive, not {self.batch_size}")
        assert self.source                                                # which refuses what pack refuses

    @cached_property
    def source(self) -> Pack:
        """What makes the rows."""
        return Pack(length=self.length, domains=self.domains, whole=self.whole, isolate=self.isolate)

    @cached_property
    def sizes(self) -> list[float]:
        """The parts of one cycle, from the smallest up to the largest and down again to the one before the
        smallest."""
        found = [self.start]
        while found[-1] < self.end:
            found.append(min(found[-1] / self.multiplier, self.end))
        while found[-1] * self.multiplier > self.start * (1 + 1e-9):
            found.append(found[-1] * self.multiplier)
        return found

    def init(self, model: nn.Module, ctx: Context) -> State:
        self.source.init(model, ctx)
        if "reference" not in ctx.frozen:
            raise UserError("ccl draws rows by the loss that a trained model has on them: name one as "
                            "from.reference, such as a stage before that trains on the same data without "
                            "ccl.")
        return {"shared": {"rows": 0, "losses": self.losses(ctx.frozen["reference"], ctx), "round": -1,
                           "drawn": torch.zeros(0, dtype=torch.int64)}}

    @torch.no_grad()
    def losses(self, model: nn.Module, ctx: Context) -> Tensor:
        """The model's mean loss on each row, float64; infinite where a row has nothing to learn."""
        rows, found = FixedRows(self.source.rows(ctx)), []
        for first in range(0, len(rows), self.batch_size):
            batch = rows.batch(np.arange(first, min(first + self.batch_size, len(rows))))
            batch = {n: t.to(ctx.device) if isinstance(t, Tensor) else t for n, t in batch.items()}
            with evaluating(model):
                nats = token_losses(model, batch, ctx).double().sum(1)
            found.append((nats / (batch["targets"] != UNTRAINED).sum(1)).cpu())
        return torch.cat(found).nan_to_num(nan=float("inf"))

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        rows, shared, numbers = FixedRows(self.source.rows(ctx)), state["shared"], []
        for number in range(shared["rows"], shared["rows"] + step_rows(self.name, ctx)):
            turn, size, at = self.place(number, len(rows))
            if turn != shared["round"]:
                shared |= {"round": turn,
                           "drawn": drawn(shared["losses"], size, ctx.rng(f"ccl/{turn}", at=0))}
            numbers.append(int(shared["drawn"][at]))
        shared["rows"] += len(numbers)
        ctx.note("round_rows", float(len(shared["drawn"])))
        return rows.share(np.array(numbers), self.name, ctx)

    def place(self, number: int, rows: int) -> tuple[int, int, int]:
        """The round that the ``number``-th row of the stage is in, the rows of that round, and its place
        among them."""
        sizes = [max(1, int(rows * part)) for part in self.sizes]
        cycle, at = divmod(number, sum(sizes))
        turn = 0
        while at >= sizes[turn]:
            at, turn = at - sizes[turn], turn + 1
        return cycle * len(sizes) + turn, sizes[turn], at

    def epoch(self, ctx: Context) -> int:
        return len(FixedRows(self.source.rows(ctx)))

    def row_tokens(self) -> int:
        return self.length

    def preview(self, batch: Batch, ctx: Context) -> str:
        sizes = ", ".join(f"{s:.3g}" for s in self.sizes)
        return f"ccl: rounds of {sizes} of the rows\n{self.source.preview(batch, ctx)}"


def drawn(losses: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """``size`` different numbers in a random order, drawn one after the other with probabilities in
    proportion to 1 / loss: the first ones of a race in which each has an exponential time with that
    rate."""
    times = torch.empty_like(losses).exponential_(generator=rng) * losses.clamp(min=LEAST)
    winners = times.topk(size, largest=False).indices
    return winners[torch.randperm(size, generator=rng)]
