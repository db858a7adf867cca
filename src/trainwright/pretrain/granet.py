"""GraNet: prune gradually by magnitude during training, and regrow weights with large gradients each time.

"Sparse Training via Boosting Pruning Plasticity with Neuroregeneration" (arXiv 2106.10404). Left out: masks
on embeddings and head, whose rows of rare words have hardly a gradient to grow by (the paper's image models
have neither); pruning by layer (GraNet_uniform), a variant there; and the study of pruning plasticity, which
is no method. Weights of the blocks' matrices (see ``params``) are either visible or held at zero. After every
``every``-th step, with i = 1, 2 … counting these events, and i0 and i1 those of ``begin`` and ``end``, it
does in this order:
 1. Pruning, for i >= i0: the density falls to
        d = density + (initial_density - density) (1 - (i - i0) / (i1 - i0))^3,   then ``density`` from i1 on.
    The round(d N) weights largest in magnitude of all N together, not per matrix, stay visible.
 2. Neuroregeneration, in each matrix separately, up to the last step and not only while the density falls:
    the share
        p = 0.005 + (regeneration - 0.005) / 2 (1 + cos(pi step / steps))
    of its visible weights, the smallest, is removed (rounded up), and as many hidden weights, including those
    just removed, become visible: the ones with the largest gradients of this step's batch. Hidden weights are
    zeros that the model computes with, so that their gradients come with the dense backward pass at no cost.
What is hidden is zero, and so is what any method remembers of it (moments, averages). A weight that was
hidden returns at zero; one that step 2 removes and chooses again at once keeps its value and its moments, as
in the authors' code. After a dense start most of those removed are chosen again, since hardly anything else
is hidden.

With ``initial_density`` below 1 training is sparse from the start: random masks with the density of each
matrix proportional to the sum of its dimensions over their product (ERK). ``regeneration = 0`` is gradual
magnitude pruning, the baseline; ``initial_density = density`` is RigL with this schedule. Logs ``density``.
Where the authors' code seems to differ from its intention this follows the paper: the code stops one pruning
short of ``end`` and keeps one weight fewer than scheduled, its ERK masks have their density only on average,
and it clears only the momentum of SGD.

Name it before ``clip_gradients`` and the optimizer. The defaults are the paper's for CIFAR. Masked matrices
are multiplied as dense ones, so it saves no time here. Do not use it in a stage of few steps, which leaves no
time to replace what was pruned.

Errors: settings out of range; ``params`` matches nothing; a stage too short for one pruning, or for
reaching ``density``.
State: ``param``: hidden (bool, like the weight); ``shared``: visible and weights, numbers of weights.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from torch import Size, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors, Update
from trainwright.lm.masks import drawn, hide, largest, maskable, masked, zero
from trainwright.lm.schedules import check_parts, steps_of

LEAST = 0.005


class Granet(Update):
    """Prunes gradually by magnitude during training, and regrows weights with large gradients."""

    density: float = 0.1
    """Share of visible weights at the end."""
    initial_density: float = 1.0
    """Share of visible weights at the start."""
    regeneration: float = 0.5
    """Share of a matrix' visible weights exchanged at the start; falls to 0.005. 0 exchanges none."""
    every: int | float = 0.0125
    """Interval of pruning and regrowing: a share of the stage's steps (0.2, 1.0) or a number (20)."""
    begin: int | float = 0.0
    """Start of pruning: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    end: int | float = 0.6875
    """End of pruning, at the final density: a share of the stage's steps (0.2, 1.0) or a number (20)."""
    example: ClassVar[dict[str, Any]] = {"density": 0.3, "every": 2, "end": 0.5}
    off: ClassVar[dict[str, Any] | None] = {"density": 1.0, "regeneration": 0.0}

    def __post_init__(self) -> None:
        check_parts(every=self.every, begin=self.begin, end=self.end)
        if not 0 < self.density <= self.initial_density <= 1:
            raise ValueError(
                f"density and initial_density must be above 0, at most 1, and fall: {self.initial_density} "
                f"to {self.density} does not"
            )
        if self.regeneration and not LEAST <= self.regeneration < 1:
            raise ValueError(
                f"regeneration must be 0, or at least {LEAST} and below 1, not {self.regeneration}"
            )

    def claims(self, model: nn.Module) -> set[str]:
        return set(maskable(model, self.params))

    def init(self, model: nn.Module, ctx: Context) -> State:
        every, first, last = self.events(ctx)
        if ctx.steps > 1 and max(1, first, last) > ctx.steps // every:  # a plan tries one step of any stage
            raise UserError(
                f"granet: pruning every {every} steps from step {first * every} to step {last * every} does "
                f"not fit into a stage of {ctx.steps} steps; shares such as every = 0.0125 and end = 0.6875 "
                "always do."
            )
        weights = maskable(model, self.params)
        share = densities({n: w.shape for n, w in weights.items()}, self.initial_density)
        counts = {n: w.numel() - round(share[n] * w.numel()) for n, w in weights.items()}
        total = sum(w.numel() for w in weights.values())
        return {
            "param": {
                n: {"hidden": drawn(w, counts[n], ctx.rng(f"granet/{n}", at=0))} for n, w in weights.items()
            },
            "shared": {"visible": total - sum(counts.values()), "weights": total},
        }

    def events(self, ctx: Context) -> tuple[int, int, int]:
        """Steps between two events, and the numbers of the first one and of the one at the final density."""
        every = max(1, steps_of(self.every, ctx.steps))
        return (
            every,
            math.ceil(steps_of(self.begin, ctx.steps) / every),
            steps_of(self.end, ctx.steps) // every,
        )

    def density_at(self, event: int, ctx: Context) -> float:
        _, first, last = self.events(ctx)
        to_go = max(0.0, 1 - (event - first) / (last - first)) if last > first else 0.0
        return self.density + (self.initial_density - self.density) * to_go**3

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return masked(updates, state, ctx)

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        hide(params, state, ctx)
        step, (every, first, _) = ctx.step + 1, self.events(ctx)
        if ctx.grads and state["param"] and step % every == 0 and step // every >= first:
            self.prune(params, state, self.density_at(step // every, ctx))
            hide(params, state, ctx)
            for name in state["param"] if self.regeneration else ():  # in one order on all ranks
                if name in ctx.grads:
                    self.regenerate(name, params, state, ctx)
        if state["param"]:
            ctx.note("density", state["shared"]["visible"] / state["shared"]["weights"])

    def prune(self, params: Tensors, state: State, density: float) -> None:
        count = round(density * state["shared"]["weights"])
        if count < state["shared"]["visible"]:
            leaves = state["param"]
            found = largest(
                {n: params[n] for n in leaves}, {n: leaf["hidden"] for n, leaf in leaves.items()}, count
            )
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
        now = sharding.like(grown.view(params[name].shape), params[name])
        zero(params[name], now)
        ctx.forget(name, now)                                  # what was hidden before is forgotten already
        state["param"][name]["hidden"] = now


def densities(shapes: dict[str, Size], density: float) -> dict[str, float]:
    """ERK: densities proportional to the sum of a matrix' dimensions over their product, at most 1."""
    dense: set[str] = set()
    while True:
        rest = {n: s for n, s in shapes.items() if n not in dense}
        numbers = density * sum(s.numel() for s in shapes.values()) - sum(shapes[n].numel() for n in dense)
        scale = numbers / max(1, sum(sum(s) for s in rest.values()))
        over = {n for n, s in rest.items() if scale * sum(s) > s.numel()}
        if not over:
            return {n: scale * sum(s) / s.numel() if n in rest else 1.0 for n, s in shapes.items()}
        dense |= over
