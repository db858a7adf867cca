"""SaRA: train the weights that are nearly zero, since they do nothing yet, and hold what they learn at a low rank.

"SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation" (arXiv 2409.06633). Of each weight
W [out, in] those entries are trained in place which are smaller in size than a threshold t, all else is frozen:

    M = (|W| < t),   y = W x + b,   loss + nuclear ||W * M||_*   (nuclear norm, of one matrix a step, drawn at random),

the gradient of which is nuclear (U V')[M], with W * M = U S V' and terms of no size left out. ``share`` finds t: this share of
all weights of the layers is smaller. After the share ``progress`` of the steps entries that have grown to t and beyond are done:
they keep their value, and the rest goes on. The entries lie in a vector of their own, so that their gradients and what an
optimizer remembers have its size. W holds zeros in their place, and what is done; a dense gradient of a layer lasts a moment.

Name it before clip and the optimizer: the penalty is a part of the gradient, as in the paper. Behind the optimizer it would be
subtracted beside its step, like a decay. The authors' rule for the learning rate is 1e-3 exp(-350 t); AdamW with a decay of 0.01
acts on the entries. The vector keeps its length when entries are done.

The paper's models are for images, and it takes every tensor; here the linear layers of a language model. The first of its two
optimizers loses the signs of the weights at the start and never shows the penalty to what is trained, and both pass over matrices
with a side of 64 or less; here every layer has its turn. Memory of optimizers is kept at ``progress``, as in the second of them.
Not where much is to be learned: most weights cannot move. Not for pruned models, whose zeros would be the first to be trained.
Errors: settings out of range; no weight below the threshold; ``layers`` matches no linear layer, a taken or a tied one.
State: ``param``: done (bool, an entry each); ``shared``: steps.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from trainwright.core import sharding
from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.finetune._sara import SaraLinear, polar, smallest
from trainwright.lm import deltas
from trainwright.lm.layers import as_linear_weight, freeze, linear_layers, put

FILE = "sara.safetensors"


class Sara(Surgery, Update):
    """Trains the smallest weights in place, with a penalty on the nuclear norm of what they become."""

    share: float = 0.15
    """Share of the layers' weights that is trained: those of smallest size. 0.1 to 0.2 in the paper."""
    threshold: float = 0.0
    """Size below which weights are trained; where it is above 0, share does not count."""
    nuclear: float = 5e-4
    """Factor of the nuclear norm in the loss."""
    progress: float = 0.5
    """After what share of the steps only weights that are still below the threshold go on; 1 keeps all to the end."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    params: ClassVar[str] = "*.sara_values"  # type: ignore[misc]
    whole: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", claim="keeps what the model could do better than LoRA of as many trained numbers does",
        metric="forgetting/prose", drop=("adamw",), search={"adamw.lr": [3e-3, 9e-3, 2.7e-2]},
        add=({"use": "sara", "share": 0.14}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.01, "decay_1d": True}),
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}), versus="LoRA")
    example: ClassVar[dict[str, Any]] = {"progress": 0.2}

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 <= self.progress <= 1):
            raise ValueError(f"share must be above 0 and below 1, and progress 0 to 1, not {self.share} and {self.progress}.")
        if self.threshold < 0 or self.nuclear < 0:
            raise ValueError(f"threshold and nuclear must be 0 or more, not {self.threshold} and {self.nuclear}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        limit = self.threshold or smallest([m.weight for m in layers.values()], self.share)
        if not any((m.weight.abs() < limit).any() for m in layers.values()):
            raise UserError(f"sara: no weight of layers = {self.layers!r} is smaller than {limit:.2e}: raise threshold or share.")
        freeze(model)
        for name, layer in layers.items():
            if (layer.weight.abs() < limit).any():
                put(model, name, SaraLinear(layer, self, limit))

    def mine(self, model: nn.Module) -> dict[str, SaraLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, SaraLinear) and m.settings == self}

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {"param": {f"{n}.sara_values": {"done": torch.zeros(len(m.places), dtype=torch.bool, device=m.weight.device)}
                          for n, m in self.mine(model).items()}, "shared": {"steps": 0}}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        state["shared"]["steps"] = ctx.step + 1
        out = {n: u.masked_fill(state["param"][n]["done"], 0) for n, u in updates.items() if n in state["param"]}
        if self.nuclear:
            name = list(out)[int(torch.randint(len(out), (), generator=ctx.rng("sara")))]
            layer, done = ctx.policy.get_submodule(name.rpartition(".")[0]), state["param"][name]["done"]
            out[name] += self.nuclear * polar(layer, params[name]).masked_fill(done, 0)
        return updates | out

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        step, turn = ctx.step + 1, int(self.progress * ctx.steps)
        if state["shared"]["steps"] != step or not turn <= step or not 0 < turn < ctx.steps:
            return                                                    # before the first step, or none is done
        for name, layer in self.mine(ctx.policy).items():
            values, leaf = params[f"{name}.sara_values"], state["param"][f"{name}.sara_values"]
            if step == turn:
                now = sharding.full(values.detach())
                grown = now.abs() >= layer.limit
                layer.keep(params[f"{name}.weight"], now * grown)
                leaf["done"] = sharding.like(grown, values)
            sharding.local(values.detach()).masked_fill_(sharding.local(leaf["done"]), 0)
            ctx.forget(f"{name}.sara_values", leaf["done"])

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            as_linear_weight(layer).copy_(layer.whole())
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``sara.safetensors``: of each layer ``NAME.sara_values``, the weights that were trained, at ``NAME.places``."""
        found = {f"{n}.sara_values": m.whole().reshape(-1)[m.places.long()] for n, m in self.mine(model).items()}
        deltas.write(found | {f"{n}.places": m.places for n, m in self.mine(model).items()}, folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read({f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in ("sara_values", "places")},
                    folder / FILE)
