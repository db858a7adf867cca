"""NOLA: LoRA whose two matrices are mixtures of fixed random ones, so that a few mixing coefficients are all that is trained.

"NOLA: Networks as Linear Combination of Low Rank Random Basis" (arXiv 2310.02556). For a frozen layer W [out, in],

    y = W x + s B A x,   A = A_0 + sum_i a_i A_i,   B = sum_j b_j B_j,   s = alpha / rank,

A_i [rank, in] and B_j [out, rank] are uniform in +-1/sqrt(bases), a and b (``bases`` numbers each) are trained and start at zero.
What a layer costs to store, 2 ``bases`` numbers, depends neither on the rank nor on the layer's size. The paper's formula has no
A_0. This is its released language-model code, which trains around a frozen A_0, uniform in +-1/sqrt(in): with all of a, b and A_0
at zero no gradient would ever flow; with it b moves at the first step, and a after that.

The matrices are numbered, not stored (``_bases.py``): each pass, forward or backward, makes them anew from a seed, a part at a
time, so that memory does not depend on ``bases`` and every device makes the same ones. The released code reseeds the global
generator in each pass, which repeats the dropout of other layers, and its way in parts does not run. That work is ``bases`` times
``rank`` times (in + out) numbers a layer and pass: with few tokens in a batch it costs more than the layer itself.

The addition is folded into W for export. The delta beside it holds the coefficients, and the seed in ``surgery.json``. a and b
are float32; learning rates of 1e-3 to 5e-3 without weight decay are the paper's (``adamw`` does not decay 1-D parameters).

Not where the size of the adapter does not matter: LoRA is faster for the same rank.
Errors: ``layers`` matches no linear layer, one that has an adapter, or one whose weight is tied.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.finetune._bases import combine, uniform
from trainwright.lm import deltas
from trainwright.lm.layers import Adapter, as_linear_weight, freeze, linear_layers, put

FILE = "nola.safetensors"


class Nola(Surgery):
    """LoRA matrices as mixtures of random ones, of which the coefficients are trained."""

    bases: int = 512
    """Random matrices in each mixture, and so coefficients: two times as many for each layer."""
    rank: int = 8
    """Rank of the addition."""
    alpha: float = 8.0
    """Scale of the addition, divided by the rank."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.[qv]_proj."""
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", claim="half the trained numbers of LoRA of rank 1, or fewer, with no loss of quality",
        metric="trainable_parameters", add=({"use": "nola", "bases": 64},), baseline=({"use": "lora", "rank": 1},),
        versus="LoRA of rank 1")
    example: ClassVar[dict[str, Any]] = {"bases": 8, "rank": 2, "alpha": 4.0}

    def __post_init__(self) -> None:
        for name, value in (("bases", self.bases), ("rank", self.rank)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, NolaLinear(layer, self, [ctx.rng(f"nola/{name}/{part}", at=0).initial_seed() for part in "AB"]))

    def mine(self, model: nn.Module) -> dict[str, NolaLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, NolaLinear) and m.settings == self}

    def coefficients(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in ("nola_a", "nola_b")}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight, (A, B) = as_linear_weight(layer), layer.matrices()
            weight.copy_(torch.addmm(weight.float(), B, A, alpha=self.alpha / self.rank))
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``nola.safetensors``: of each layer ``NAME.nola_a`` and ``NAME.nola_b`` [bases], and nothing else."""
        deltas.write(self.coefficients(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.coefficients(model), folder / FILE)


class NolaLinear(Adapter):
    """A linear layer with the addition of one ``Nola``."""

    def __init__(self, layer: nn.Module, settings: Nola, seeds: list[int]) -> None:
        super().__init__(layer)
        self.settings, self.seeds = settings, seeds
        self.nola_a = nn.Parameter(torch.zeros(settings.bases, device=self.weight.device))
        self.nola_b = nn.Parameter(torch.zeros(settings.bases, device=self.weight.device))

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank], float32."""
        rank, (seed_a, seed_b) = self.settings.rank, self.seeds
        start = uniform(seed_a, self.settings.bases, 1, rank * self.in_features, self.weight.device)   # behind the last
        A = combine(self.nola_a, seed_a, rank, self.in_features)
        return A + start.view_as(A) / math.sqrt(self.in_features), combine(self.nola_b, seed_b, self.out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        rows = x.reshape(-1, self.in_features).to(kind)
        A, B = self.matrices()
        y = self.linear(rows).addmm_(F.linear(rows, A.to(kind)), B.to(kind).T, alpha=self.settings.alpha / self.settings.rank)
        return y.view(*x.shape[:-1], self.out_features)
