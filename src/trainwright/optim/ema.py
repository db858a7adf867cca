"""An exponential moving average of the weights, for evaluation and export; the trained weights are untouched.

"Acceleration of Stochastic Approximation by Averaging" (Polyak and Juditsky 1992), in the exponential form
of "Mean teachers are better role models" (arXiv 1703.01780). After step t = 0, 1 …, with p the trained
weights,
    mean <- d mean + (1 - d) p,   d = decay, or with ``warmup``  min(decay, (1 + t) / (10 + t)),
so that the early average does not hold on to the untrained weights. ``mean`` is float32 whatever the dtype
of the weights: in bfloat16 the small steps of an average round to nothing. It costs 4 bytes per parameter.
Do not use it with a schedule that decays to zero, where it adds little. Buffers (BatchNorm statistics) are
not averaged.

Errors: a decay outside 0 … 1. State: ``param``: mean.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn

from trainwright.core import sharding
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.method import State, Tensors, Update
from trainwright.core.settings import Part


class Ema(Update):
    """Averages the weights exponentially, for evaluation and export."""

    decay: Part = 0.999
    """Share of the average that is kept at each step: it looks back about 1 / (1 - decay) steps."""
    warmup: bool = True
    """Whether early averages look back less far, as long as the run is younger than that."""
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"decay": 0.5}
    off: ClassVar[dict[str, Any] | None] = {}

    def init(self, model: nn.Module, ctx: Context) -> State:
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        return {
            "param": {
                n: {"mean": trained[n].detach().to(torch.float32, copy=True)}
                for n in match(self.params, trained)
            }
        }

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        leaves = state["param"]
        if not leaves:
            return
        decay = min(self.decay, (1 + ctx.step) / (10 + ctx.step)) if self.warmup else self.decay
        now = [sharding.local(params[n].detach()).float() for n in leaves]
        torch._foreach_lerp_([sharding.local(leaf["mean"]) for leaf in leaves.values()], now, 1 - decay)

    def view(self, params: Tensors, state: State) -> Tensors:
        return {n: leaf["mean"] for n, leaf in state["param"].items()}
