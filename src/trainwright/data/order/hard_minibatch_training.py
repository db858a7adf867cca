"""Hard mini-batch training: after one epoch, keeps training on the mini-batches of the highest loss.

"Can we learn better with hard samples?" (arXiv 2304.03486), after the authors' code. The data is cut into n
mini-batches, once and for all. The first epoch trains on each and records its loss. Then, until the budget
is spent, a round

    takes the int(delta n) mini-batches with the highest recorded loss, trains on each (in their fixed order),
    and records their losses anew; the others keep the loss of when they were last trained on.

delta = 1 is ordinary training on mini-batches that never change. The loss is that of the training step
itself, so nothing is scored in addition, and a mini-batch that falls behind the others comes back.
``epochs = X`` of a stage means X n steps, as many as in ordinary training.

A mini-batch is a step's rows, packed once. Selection is by mini-batch, not by sample (hard example mining
is another, stronger method), so it needs small mini-batches: the mean over many texts hardly differs from
one step to the next. Replaces ``pack`` and has its settings.

Not for a single pass over the data, where it changes nothing; nor where the hardest batches are noise, on
which it would train.

Errors: those of ``pack``; fewer rows than a step has; a mixture. State: ``shared``: the losses, the round
and the position in it. """
from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Command, Controller, Data, State
from trainwright.data.order.pack import Pack
from trainwright.lm.fixed_rows import FixedRows, shuffled, step_rows


class HardMinibatchTraining(Data, Controller):
    """Repeats the mini-batches of the highest loss, and reads the losses as a controller."""

    delta: float = 0.5
    """Part of the mini-batches that a round trains on."""
    length: int = 512
    """Positions in a row."""
    domains: tuple[str, ...] = ()
    """Domains to take; all if none is named."""
    whole: bool | None = None
    """Never cut a document to fill a row; by default only conversations are kept whole."""
    isolate: Literal["documents", "rows"] = "documents"
    """Keep documents apart by attention or, for models that cannot, by giving each a row of its own."""
    example: ClassVar[dict[str, Any]] = {"length": 64}

    def __post_init__(self) -> None:
        if not 0 < self.delta <= 1:
            raise ValueError(f"delta must be above 0 and at most 1, not {self.delta}")
        assert self.source                                                # which refuses what pack refuses

    @cached_property
    def source(self) -> Pack:
        """What makes the rows."""
        return Pack(length=self.length, domains=self.domains, whole=self.whole, isolate=self.isolate)

    def init(self, model: nn.Module, ctx: Context) -> State:
        self.source.init(model, ctx)
        return {"shared": self.first_round(ctx)}

    def first_round(self, ctx: Context) -> dict[str, Any]:
        """What is remembered before the first step; where the rows of a step change, all begins anew."""
        many = self.minibatches(ctx)
        return {"batch_rows": ctx.batch_rows, "losses": torch.zeros(many, dtype=torch.float64),
                "round": torch.arange(many),
                "at": 0}

    def tick(self, view: View, state: State) -> Iterable[Command]:
        shared = state["shared"]
        if shared["at"] and "loss" in view.notes:
            shared["losses"][shared["round"][shared["at"] - 1]] = view.notes["loss"]
        return ()

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        rows, shared = FixedRows(self.source.rows(ctx)), state["shared"]
        if shared["batch_rows"] != ctx.batch_rows:
            shared |= self.first_round(ctx)
        if shared["at"] == len(shared["round"]):
            shared |= {"round": self.hardest(shared["losses"]), "at": 0}
        first = int(shared["round"][shared["at"]]) * ctx.batch_rows
        shared["at"] += 1
        order = shuffled(len(rows), ctx.seed, "hard_minibatch_training")
        return rows.share(order[first:first + ctx.batch_rows], self.name, ctx)

    def hardest(self, losses: Tensor) -> Tensor:
        """Numbers of the mini-batches of a round, in order; of equal losses the first."""
        order = losses.argsort(descending=True, stable=True)
        return order[:max(1, int(self.delta * len(losses)))].sort().values

    def minibatches(self, ctx: Context) -> int:
        """Whole mini-batches that the rows make."""
        rows, many = len(FixedRows(self.source.rows(ctx))), step_rows(self.name, ctx)
        if rows < many:
            raise UserError(f"{self.name}: the corpus makes {rows} rows of {self.length} tokens and a step "
                            f"has {many}; lower batch_tokens, or length.")
        return rows // many

    def epoch(self, ctx: Context) -> int:
        return self.minibatches(ctx) * ctx.batch_rows

    def row_tokens(self) -> int:
        return self.length

    def preview(self, batch: Batch, ctx: Context) -> str:
        return f"{self.name}: {self.minibatches(ctx):,} mini-batches\n{self.source.preview(batch, ctx)}"
