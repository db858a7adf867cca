"""GraNet: prune gradually by magnitude while training, and at each pruning let the network regrow what its gradients ask for.

"Sparse Training via Boosting Pruning Plasticity with Neuroregeneration" (arXiv 2106.10404). The weights of the blocks' matrices
(see ``params``) are visible or held at zero. After every ``every``-th step, with i = 1, 2 … counting these, and i0, i1 those of
``begin`` and ``end``, in this order:
 1. Pruning, for i >= i0: the density falls to
        d = density + (initial_density - density) (1 - (i - i0) / (i1 - i0))^3,     and stays at ``density`` from i1 on.
    Visible stay the round(d N) weights largest in magnitude of all N together, not of each matrix.
 2. Neuroregeneration, in each matrix by itself, to the last step and not only while pruning goes on: the share
        p = 0.005 + (regeneration - 0.005) / 2 (1 + cos(pi step / steps))
    of its visible weights, the smallest, is removed (rounded up), and as many of its hidden ones, the removed among them, become
    visible: those with the largest gradients of this step's batch. Hidden weights are zeros that the model computes with, so
    that their gradients are the dense ones and cost nothing.
What is hidden is zero, and so is what any method remembers of it (moments, averages). A weight that returns begins at zero.

With ``initial_density`` below 1 training is sparse from the start: random masks, a matrix' density proportional to the sum of its
dimensions over their product (ERK). ``regeneration = 0`` is gradual magnitude pruning, the baseline; ``initial_density =
density`` is RigL with this schedule. Logs ``density``. The authors' code differs where it seems not meant: it stops one pruning
short of ``end`` and keeps one weight fewer than the schedule says, it draws ERK masks that only on average have their density, a
weight that is removed and chosen again in one step keeps its value, and of memories it clears the momentum of SGD alone.
Name it before ``clip`` and the optimizer. The defaults are the paper's for CIFAR. Masked matrices are multiplied as dense ones,
so it saves no time here. Not for a stage of few steps, in which what was pruned has no time to be replaced.

Errors: settings out of range, ``params`` matches nothing, a stage too short for a pruning, or to prune down to ``density``.
State: ``param``: hidden (bool, like the weight); ``shared``: visible and weights, numbers of weights.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Size, nn

from trainwright.core import sharding
from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors, Update
from trainwright.lm.masks import drawn, hide, largest, maskable, masked, zero
from trainwright.lm.schedules import check, steps_of

LEAST = 0.005


class Granet(Update):
    """Prunes gradually by magnitude while training, and regrows as it prunes by the largest gradients."""

    density: float = 0.1
    """Share of the weights that is visible at the end."""
    initial_density: float = 1.0
    """Share of the weights that is visible at the start."""
    regeneration: float = 0.5
    """Share of a matrix' visible weights that is exchanged at the start; it falls to 0.005. 0 exchanges none."""
    every: float = 0.0125
    """How often it prunes and regrows: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
    begin: float = 0.0
    """Where pruning begins: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
    end: float = 0.6875
    """Where the final density is reached: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
    bench: ClassVar[Bench | None] = Bench(
        suite="pretrain", claim="better than any other sparse training at the same density, static masks by far",
        add=({"use": "granet", "density": 0.2, "every": 0.1},), baseline=({"use": "spdf", "sparsity": 0.8},),
        versus="static random mask", scale="the paper exchanges weights every 1,000 steps of 80,000; here are 146 steps in all")
    example: ClassVar[dict[str, Any]] = {"density": 0.3, "every": 2, "end": 0.5}
    off: ClassVar[dict[str, Any] | None] = {"density": 1.0, "regeneration": 0.0}

    def __post_init__(self) -> None:
        check(every=self.every, begin=self.begin, end=self.end)
        if not 0 < self.density <= self.initial_density <= 1:
            raise ValueError(f"density and initial_density must be above 0, at most 1, and fall: {self.initial_density} to "
                             f"{self.density} does not")
        if self.regeneration and not LEAST <= self.regeneration < 1:
            raise ValueError(f"regeneration must be 0, or at least {LEAST} and below 1, not {self.regeneration}")

    def claims(self, model: nn.Module) -> set[str]:
        return set(maskable(model, self.params))

    def init(self, model: nn.Module, ctx: Context) -> State:
        every, first, last = self.events(ctx)
        if ctx.steps > 1 and max(1, first, last) > ctx.steps // every:                 # a plan tries one step of any stage
            raise UserError(f"granet: pruning every {every} steps from step {first * every} to step {last * every} does not fit "
                            f"into a stage of {ctx.steps} steps; shares such as every = 0.0125 and end = 0.6875 always do.")
        weights = maskable(model, self.params)
        share = densities({n: w.shape for n, w in weights.items()}, self.initial_density)
        counts = {n: w.numel() - round(share[n] * w.numel()) for n, w in weights.items()}
        total = sum(w.numel() for w in weights.values())
        return {"param": {n: {"hidden": drawn(w, counts[n], ctx.rng(f"granet/{n}", at=0))} for n, w in weights.items()},
                "shared": {"visible": total - sum(counts.values()), "weights": total}}

    def events(self, ctx: Context) -> tuple[int, int, int]:
        """Steps between two prunings, and the numbers of the first and of the one that comes to the final density."""
        every = max(1, steps_of(self.every, ctx.steps))
        return every, math.ceil(steps_of(self.begin, ctx.steps) / every), steps_of(self.end, ctx.steps) // every

    def density_at(self, event: int, ctx: Context) -> float:
        _, first, last = self.events(ctx)
        to_go = max(0.0, 1 - (event - first) / (last - first)) if last > first else 0.0
        return self.density + (self.initial_density - self.density) * to_go ** 3

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return masked(updates, state, ctx)

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        hide(params, state, ctx)
        step, (every, first, _) = ctx.step + 1, self.events(ctx)
        if ctx.grads and state["param"] and step % every == 0 and step // every >= first:
            self.prune(params, state, self.density_at(step // every, ctx))
            hide(params, state, ctx)
            for name in state["param"] if self.regeneration else ():                   # in one order on all ranks
                if name in ctx.grads:
                    self.regenerate(name, params, state, ctx)
        if state["param"]:
            ctx.note("density", state["shared"]["visible"] / state["shared"]["weights"])

    def prune(self, params: Tensors, state: State, density: float) -> None:
        count = round(density * state["shared"]["weights"])
        if count < state["shared"]["visible"]:
            leaves = state["param"]
            found = largest({n: params[n] for n in leaves}, {n: leaf["hidden"] for n, leaf in leaves.items()}, count)
            for name, hidden in found.items():
                leaves[name]["hidden"] = hidden
            state["shared"]["visible"] = count

    def regenerate(self, name: str, params: Tensors, state: State, ctx: Context) -> None:
        hidden = sharding.full(state["param"][name]["hidden"]).flatten()
        share = LEAST + (self.regeneration - LEAST) / 2 * (1 + math.cos(math.pi * (ctx.step + 1) / ctx.steps))
        count = math.ceil(share * int((~hidden).sum()))
        sizes = sharding.full(params[name].detach()).abs().flatten().masked_fill(hidden, math.inf)
        removed = hidden.index_fill(0, sizes.topk(count, largest=False).indices, True)
        slopes = sharding.full(ctx.grads[name]).abs().flatten().masked_fill(~removed, -1)
        grown = removed.index_fill(0, slopes.topk(count).indices, False)
        shape, like = params[name].shape, params[name]
        bare = sharding.like(removed.view(shape), like)
        zero(params[name], bare)
        ctx.forget(name, bare)
        state["param"][name]["hidden"] = sharding.like(grown.view(shape), like)


def densities(shapes: dict[str, Size], density: float) -> dict[str, float]:
    """ERK: each matrix' density, proportional to the sum of its dimensions over their product, none above 1."""
    dense: set[str] = set()
    while True:
        rest = {n: s for n, s in shapes.items() if n not in dense}
        numbers = density * sum(s.numel() for s in shapes.values()) - sum(shapes[n].numel() for n in dense)
        scale = numbers / max(1, sum(sum(s) for s in rest.values()))
        over = {n for n, s in rest.items() if scale * sum(s) > s.numel()}
        if not over:
            return {n: scale * sum(s) / s.numel() if n in rest else 1.0 for n, s in shapes.items()}
        dense |= over
