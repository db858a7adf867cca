"""Hard mini-batch training: each round trains on the mini-batches that the network of now finds hardest.

"Can we learn better with hard samples?" (arXiv 2304.03486). The data is cut into n mini-batches, once and for
all. Until the budget is spent, a round

    computes the loss of each of the n with the current network, without gradients,
    and trains on the int(delta n) of the highest loss, in their fixed order.

delta = 1 is ordinary training on mini-batches that never change, and computes no such losses. The loss is the
cross-entropy of a mini-batch's targets, in evaluation mode. The pass costs about a third of training on all n
(of a step's 3 parts it has the forward one), so that with delta = 0.5 a round of n / 2 steps costs two thirds
more than its steps; those FLOPs and seconds are in the ledger, but no tokens, since none is trained on.
Compare at equal steps, as the paper does, and at equal FLOPs too. ``epochs = X`` of a stage means X n steps,
as many as in ordinary training.

A mini-batch is a step's rows, packed once. Selection is by mini-batch, not by sample (hard example mining is
another, stronger method), so it needs small mini-batches: the mean over many texts hardly differs from one
to the next. The first round ranks too, with the network that the stage begins with. Replaces ``pack`` and has
its settings. What the paper does not say, and is decided here: the order within a round.

Not for a single pass over the data, of which it leaves a part out; nor where the hardest batches are noise,
on which it would train.

Errors: those of ``pack``; fewer rows than a step has; a mixture. State: ``shared``: rows of a step, the round
and the position in it. """
from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core import flops, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Data, State
from trainwright.data.order.pack import Pack
from trainwright.lm.fixed_rows import FixedRows, shuffled, step_rows
from trainwright.lm.losses import evaluating, token_losses, trained_tokens


class HardMinibatchTraining(Data):
    """Trains in rounds on the mini-batches of which the current network has the highest loss."""

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
        return {"batch_rows": ctx.batch_rows, "round": torch.arange(0), "at": 0}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        shared = state["shared"]
        if shared["batch_rows"] != ctx.batch_rows:
            shared |= self.first_round(ctx)
        if shared["at"] == len(shared["round"]):
            shared |= {"round": self.ranked(ctx), "at": 0}
        shared["at"] += 1
        return self.minibatch(int(shared["round"][shared["at"] - 1]), ctx)

    def minibatch(self, number: int, ctx: Context) -> Batch:
        """This rank's rows of one of the mini-batches."""
        rows = FixedRows(self.source.rows(ctx))
        order = shuffled(len(rows), ctx.seed, "hard_minibatch_training")
        first = number * ctx.batch_rows
        return rows.share(order[first:first + ctx.batch_rows], self.name, ctx)

    def ranked(self, ctx: Context) -> Tensor:
        """The mini-batches of a round."""
        many = self.minibatches(ctx)
        weightless = ctx.policy is None or next(ctx.policy.parameters()).is_meta
        if self.delta == 1 or weightless:
            return torch.arange(many)[:max(1, int(self.delta * many))]
        assert ctx.policy is not None
        return self.hardest(self.losses(ctx.policy, many, ctx))

    @torch.no_grad()
    def losses(self, model: nn.Module, many: int, ctx: Context) -> Tensor:
        """The mean loss of each mini-batch [n], float64, under the model as it is."""
        sums = torch.zeros(2, many, dtype=torch.float64)
        with flops.apart(ctx), evaluating(model):
            for number in range(many):
                batch = self.minibatch(number, ctx)
                batch = {n: t.to(ctx.device) if isinstance(t, Tensor) else t for n, t in batch.items()}
                sums[0, number] = token_losses(model, batch, ctx).double().sum().cpu()
                sums[1, number] = trained_tokens(batch)
        sums = sharding.summed(sums.to(ctx.device)).cpu()
        return sums[0] / sums[1].clamp(min=1)

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
