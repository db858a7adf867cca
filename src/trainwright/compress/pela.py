"""PELA: factor all matrices of a model, and heal the low-rank model by distillation from the original.

"PELA: Learning Parameter-Efficient Models with Low-Rank Approximation" (arXiv 2310.10700). Each linear layer
W [out, in] becomes two of rank r = floor(in out / (reduction (in + out))), which leaves about 1/reduction of
the weights:

    W ~ B A,    B = U S^(1/2) [out, r],  A = S^(1/2) V^T [r, in],   from the truncated SVD of W

In the stage that heals, ``from.teacher`` is the original model, and two terms are added to the loss of the
texts, with h the states behind block i of n and mean over the layers that are factored:

    ``feature`` * mean_i mean (h_i - h_i of the teacher)^2
    ``perturbation`` * mean_layers (max_jk |(B A - W)_jk| - ``target``)^2

The second holds the largest deviation of an entry at ``target``: it is an equality, so that smaller ones are
let grow. No noise is added. Everything but W is trained as usual; the teacher is frozen.

For what follows (fine-tuning without a teacher) name it again with ``feature = 0, perturbation = 0``: the
matrices have rank r already, and their SVD gives the same function back. Exported, each product is a plain
matrix. The number of trained parameters counts the factors.

Do not use it without healing at a large reduction, or where the exported file has to be smaller: the product
takes as much room as W. Left out: the loss on logits of the paper's image models.

Errors: no teacher where one is asked for, or one of another shape; layers too small for a rank of 1.
"""
from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective, State, Surgery
from trainwright.core.settings import Between, Rate
from trainwright.core.stage import Role
from trainwright.lm import distillation
from trainwright.lm.factored import FactoredLinear
from trainwright.lm.layers import as_linear_weight, in_out, linear_layers, put
from trainwright.lm.losses import field, trained_tokens


class Pela(Surgery, Objective):
    """Low-rank matrices, held to the model that they come from."""

    reduction: Annotated[float, Between(1.0, 1000.0)] = 3.0
    """By how much the number of weights is divided."""
    feature: Rate = 0.1
    """Factor of the distance from the teacher's hidden states."""
    perturbation: Rate = 1.0
    """Factor of the distance of the matrices from the teacher's."""
    target: Rate = 1e-3
    """Largest deviation of an entry that the second term asks for."""
    layers: str = "all-linear"
    """Which layers: all-linear, attention, mlp, or a glob of module names."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True)}
    neutral: ClassVar[bool] = False
    beside: ClassVar[tuple[dict[str, Any], ...]] = ({"use": "next_token"},)
    example: ClassVar[dict[str, Any]] = {}

    def asks(self) -> dict[str, Role]:
        return self.roles if self.feature or self.perturbation else {}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def rank(self, layer: nn.Module, name: str) -> int:
        """r of a layer."""
        size, out = in_out(layer)
        found = int(size * out // (self.reduction * (size + out)))
        if not found:
            raise UserError(f"pela: {name} [{out}, {size}] is too small to be divided by {self.reduction:g}.")
        return found

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> None:
        for name, layer in linear_layers(model, self.layers).items():
            put(model, name, LowRank(layer, self, self.rank(layer, name)))

    def mine(self, model: nn.Module) -> dict[str, LowRank]:
        return {n: m for n, m in model.named_modules() if isinstance(m, LowRank) and m.settings == self}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.plain())

    # ---- healing -----------------------------------------------------------------------------------------

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.asks():
            there = dict(distillation.frozen_model(self.name, "teacher", ctx).named_modules())
            for name, layer in self.mine(model).items():
                if name not in there or in_out(there[name]) != (layer.in_features, layer.out_features):
                    raise UserError(f"pela: the teacher has no layer {name} of the shape "
                                    f"[{layer.out_features}, {layer.in_features}]: take the model that the "
                                    "stage starts from.")
                layer.origin = (as_linear_weight(there[name]).detach(),)
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        """Both terms for each position [R, L]; the second is the same for all that are learned."""
        learned = field(batch, "targets") != UNTRAINED
        if not self.asks():
            return torch.zeros(learned.shape, device=learned.device)
        layers = list(self.mine(model).values())
        for layer in layers:
            layer.heard = []
        values = self.feature * distillation.block_distance(model, ctx.frozen["teacher"], batch)
        apart = torch.stack([layer.heard[0] for layer in layers if layer.heard])
        for layer in layers:
            layer.heard = None
        held = (apart - self.target).square().mean()
        ctx.note("pela/perturbation", held.detach())
        return values + self.perturbation * held * learned


class LowRank(FactoredLinear):
    """A linear layer of two factors."""

    def __init__(self, layer: nn.Module, settings: Pela, rank: int) -> None:
        super().__init__(layer, settings)
        weight = as_linear_weight(layer).detach()
        if weight.is_meta:
            up, down = weight.new_empty(len(weight), rank), weight.new_empty(rank, weight.shape[1])
        else:
            u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
            root = s[:rank].sqrt()
            up, down = u[:, :rank] * root, root[:, None] * v[:rank]
        self.up = nn.Parameter(up.to(weight.dtype).contiguous())
        self.down = nn.Parameter(down.to(weight.dtype).contiguous())
        self.origin: tuple[Tensor, ...] = ()                    # in a tuple: no parameter of this model
        self.heard: list[Tensor] | None = None

    def product(self, rows: Tensor, bias: Tensor | None) -> Tensor:
        if self.origin and self.training:               # here, where a sharded factor is whole
            most = (self.matrix().float() - self.origin[0]).abs().max()
            if self.heard is not None:
                self.heard.append(most)
        return F.linear(F.linear(rows, self.down.to(rows.dtype)), self.up.to(rows.dtype), bias)

    def matrix(self) -> Tensor:
        return self.up @ self.down
