"""SpIEL: train a few weights of each matrix as deltas; at intervals drop some and grow others instead.

"Scaling Sparse Fine-Tuning to Large Language Models" (arXiv 2401.16405). A layer W [out, in] has k places and
k deltas d:

    y = (W + scatter(d)) x + b,   N = int(density * all parameters),   k = int(N size(W) / sum of sizes),

counting all parameters of the model. W is frozen; places start at random, deltas at 0. After each step s with
s mod ``every`` = ``capture``, every layer drops its int(p k) deltas of smallest size and grows as many
places, where p = 1 the first time and drop (1 - s / steps) afterwards. Their number never changes. A place
that is dropped and grown at once keeps its delta, moments and age; other grown places begin at 0.

``accumulated_gradient``: in the first of the ``capture`` (+ 1) steps before that, the k places of largest
gradient become candidates, and in the others their gradients are summed. Those of largest |sum| are grown.
Steps are Adam's, and each entry has an age of its own: the n gradients seen of a grown one give it age n, m =
mean(g) (1 - beta1^n) and v = mean(g^2) (1 - beta2^n). ``momentum_approximation``: steps are SM3's, v =
min(row, column) + g^2 and u = g / sqrt(v + eps), where row and column are the largest v of theirs. Of the
places that are not active, those of largest row * column are grown.

Weight decay acts on the deltas: it pulls to W. The method is the optimizer of its deltas: name another one
only for what others train. A stage can have one.

The dense gradient of a layer exists until its entries are read off; what is kept is 9 numbers a place, 2 with
SM3. The candidates are a parameter (and counted as one) whose values are not used, so that their gradients
are summed like all others. They are 2^20 times smaller until they are read, so that they do not count where a
norm is clipped. The authors' code chooses candidates in its first micro-batch, whose gradient counts in the
sum; here the first row of a step chooses, so that neither accumulation nor ranks change the result. Its ages
are one less.

Do not use it where memory is plentiful: full training learns more, and each pass copies a layer's weights.

State: ``param``: of deltas adam [3, k] (both moments and ages) or rows [out, 1] and columns [in, 1]; of
candidates sums [2, k] (of g and of g^2).
Errors: a density too low or too high for a layer; ``layers`` matches no linear layer, or one that is taken or
tied.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Surgery, Tensors
from trainwright.core.settings import Part, Positive, Rate
from trainwright.finetune.spiel._exchange import agree, exchange
from trainwright.finetune.spiel._layer import QUIET, SpielLinear, counts
from trainwright.finetune.spiel._steps import stepped
from trainwright.lm import deltas
from trainwright.lm.layers import as_linear_weight, freeze, installed, linear_layers, put
from trainwright.lm.sparse_delta import scattered

FILE = "spiel.safetensors"


class Spiel(Surgery, Optimizer):
    """Sparse deltas that are dropped where they stay small and regrown where gradients are large."""

    lr: float = 1e-3
    """Peak learning rate; a schedule multiplies it."""
    density: float = 0.01
    """Deltas as a share of all parameters of the model."""
    growth: Literal["accumulated_gradient", "momentum_approximation"] = "accumulated_gradient"
    """What decides where to grow: gradients of candidates (Adam's steps), or row and column sums (SM3's)."""
    every: int = 20
    """Steps between two exchanges."""
    capture: int = 5
    """Steps whose gradients are summed before an exchange."""
    drop: float = 0.2
    """Share of the deltas that is exchanged, falling to 0 at the last step; the first time all are."""
    beta1: Part = 0.9
    """Share of the mean of gradients that Adam keeps at each step."""
    beta2: Part = 0.999
    """Share of the mean of squared gradients that Adam keeps at each step."""
    eps: Positive = 1e-6
    """Added to the root of Adam's mean square, and within that of SM3."""
    weight_decay: Rate = 0.0
    """Share of the deltas that is subtracted at a learning rate of 1."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    params: ClassVar[str] = "*.spiel_*"  # type: ignore[misc]
    whole: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"density": 0.1, "every": 3, "capture": 2}

    def __post_init__(self) -> None:
        if not (0 < self.density < 1 and 0 <= self.drop <= 1 and 2 <= self.capture < self.every):
            raise ValueError(
                "density must be above 0 and below 1, drop between 0 and 1, capture at least 2 and below "
                f"every, not {self.density}, {self.drop}, {self.capture} of {self.every}."
            )

    @property
    def by_gradient(self) -> bool:
        return self.growth == "accumulated_gradient"

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)} | {f"step:{self.params}"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        count = counts(model, layers, self.density)
        freeze(model)
        for name, layer in layers.items():
            put(
                model,
                name,
                SpielLinear(layer, self, self.by_gradient, count[name], ctx.rng(f"spiel/{name}", at=0)),
            )

    def mine(self, model: nn.Module) -> dict[str, SpielLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, SpielLinear, self)

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {
            "param": {
                f"{n}.{p}": leaf for n, m in self.mine(model).items() for p, leaf in m.remembers().items()
            },
            "shared": {"steps": 0, "captured": 0},
        }

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        step, shared, out = ctx.step + 1, state["shared"], {}
        summed = step > 1 and 1 <= step % self.every <= self.capture
        shared["steps"], shared["captured"] = step, shared["captured"] + int(summed)
        for name, grad in updates.items():
            leaf, layer = state["param"][name], ctx.policy.get_submodule(name.rpartition(".")[0])
            if "sums" in leaf:
                leaf["sums"] += torch.stack([grad / QUIET, (grad / QUIET).square()]) * summed
                out[name] = torch.zeros_like(grad)
            else:
                out[name] = stepped(grad, layer, leaf).add_(params[name], alpha=self.weight_decay)
        return out

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        step, layers = ctx.step + 1, self.mine(ctx.policy)
        if state["shared"]["steps"] == step:                          # not so before the first
            if self.chooses(step):
                agree(layers)
            if step % self.every == self.capture:
                share = 1.0 if step == self.capture else self.drop * (1 - step / ctx.steps)
                ctx.note(
                    "exchanged", sum(exchange(n, m, share, params, state, ctx) for n, m in layers.items())
                )
                state["shared"]["captured"] = 0
            step += 1
        for layer in layers.values():
            layer.choosing, layer.chosen = self.chooses(step), None

    def chooses(self, step: int) -> bool:
        """Whether candidates are chosen in this step, counted from 1."""
        return self.by_gradient and (step == 1 or step % self.every == 0)

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight = as_linear_weight(layer)
            weight.copy_(scattered(weight, layer.spiel_deltas, layer.places, torch.float32))
            put(model, name, layer.plain())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"{n}.{part}": getattr(m, part)
            for n, m in self.mine(model).items()
            for part in ("spiel_deltas", "places")
        }

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``spiel.safetensors``: ``NAME.spiel_deltas`` and flat ``NAME.places`` (in W [out, in])."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)
