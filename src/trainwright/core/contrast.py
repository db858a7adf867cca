"""Objectives that contrast: gradients of numbers that depend on all rows of a step, by micro-batches.

Such a loss is L(r_1 … r_n, theta), with r_i what the objective makes of row i alone (``represent``). As in
"Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup" (arXiv 2101.06983):

1. each micro-batch is represented, without a graph;
2. L is computed over the rows of all micro-batches and ranks; its gradient with respect to every r_i is kept,
   that with respect to the parameters which L itself reads (a temperature) is theirs;
3. each micro-batch is represented again, with the same random numbers and with a graph, through which the
   gradient of its rows goes on.

So neither ``accumulate`` nor the number of ranks changes a result, and no more than one micro-batch is in
memory. Where a rank has a single micro-batch, 1 and 3 are one pass. Every rank computes the same L.
"""
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.batches import join
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, Weigh

if TYPE_CHECKING:
    from trainwright.core.loop import Train


def backward(run: Train, key: str, method: Objective, batches: list[Batch], units: float) -> Tensor:
    """Add the gradients of one objective's part of the step's loss, over ``units`` units.

    Returns that part, the same on every rank. FSDP averages gradients over ranks, hence the factor ``world``
    of those that a rank has for itself.
    """
    cached = len(batches) > 1
    own = [_represented(run, key, method, b, i, graph=not cached) for i, b in enumerate(batches)]
    leaves = {n: _leaf(torch.cat([part[n].detach() for part in own])) for n in own[0]}
    with torch.enable_grad(), run.autocast():
        values = method.loss(run.model, leaves, run.states[key], run.ctx)
    if len(values) != len(next(iter(leaves.values()))):
        raise UserError(f"{key} contrasts the rows of a step and must give a number for each, rows first.")
    weights = _weights(run, values.detach(), batches)
    with torch.enable_grad():                             # an update that asks for gradients again has none
        loss = (values * weights).sum() * (method.weight / units)
    torch.autograd.backward(loss)
    mine = {n: _own(t.grad) * sharding.world() for n, t in leaves.items() if t.grad is not None}
    for i, batch in enumerate(batches):
        part = _represented(run, key, method, batch, i, graph=True) if cached else own[i]
        learned = [n for n in mine if part[n].requires_grad]
        given = [mine[n].chunk(len(batches))[i].to(part[n].dtype) for n in learned]
        torch.autograd.backward([part[n] for n in learned], given)
    return loss.detach()


def values_of(run: Train, key: str, method: Objective, batch: Batch) -> Tensor:
    """The numbers of one batch, rows first, whether the objective contrasts them or not."""
    state = run.states[key]
    return method.loss(run.model, method.represent(run.model, batch, state, run.ctx), state, run.ctx)


def _represented(run: Train, key: str, method: Objective, batch: Batch, micro: int,
                 graph: bool) -> dict[str, Tensor]:
    with torch.set_grad_enabled(graph), run.randomness(micro), run.autocast():
        return method.represent(run.model, batch, run.states[key], run.ctx)


def _leaf(mine: Tensor) -> Tensor:
    """The rows of all ranks; the gradient with respect to them is kept, where they are no whole numbers."""
    every = sharding.every(mine)
    return every.requires_grad_() if every.is_floating_point() else every


def _own(every: Tensor) -> Tensor:
    """This rank's rows."""
    return every.chunk(sharding.world())[sharding.rank()]


@torch.no_grad()
def _weights(run: Train, values: Tensor, batches: list[Batch]) -> Tensor:
    """What the weighs make of all rows' numbers, of which each sees what a micro-batch's would be."""
    weights = torch.ones_like(values)
    own = [torch.ones_like(part) for part in _own(values).chunk(len(batches))]
    for w, weigh in run.of(Weigh):
        if weigh.whole:
            weights = weights * weigh.weigh(values, join(batches), run.states[w], run.ctx)
            continue
        parts = zip(own, _own(values).chunk(len(batches)), batches, strict=True)
        own = [o * weigh.weigh(v * o, b, run.states[w], run.ctx) for o, v, b in parts]
    return weights * sharding.every(torch.cat(own))
