"""MoS: LoRA whose matrices are assembled from shards of two pools that all layers of a kind share.

"MoS: Unleashing Parameter Efficiency of Low-Rank Adaptation with Mixture of Shards" (arXiv 2410.00938). The
layers in one role (all q_proj, say; L of them, W [out, in]) have one pool of shards for A and one for B. With
l shards a vector and e the ``budget``, a pool has e L l rows, of in / l numbers for A and of out / l for B.
Each layer has l rank row numbers for each pool,

    y = W x + s B A x,   s = alpha / rank,
    row j of A = shards number index_A[j l] to index_A[j l + l - 1], concatenated,

and the columns of B likewise by index_B. Of these, l private are the layer's own, from the end of the pool;
the others are drawn without repetition from the shared part, for A and B separately. They are drawn once and
never trained: nothing is routed by token, so that the addition folds into W. Each kind of layer trains e L
(in + out) numbers, as many as LoRA of rank e, while a layer's rank may be higher, up to private + (e -
private) L. With private = budget = rank it is LoRA.

A starts uniform in +-1/sqrt(in), by the full width in and not a shard's; B starts at zero. Both are float32.
The delta holds only the pools: the numbers follow from the seed in ``surgery.json``. The authors' optional
random factor for each row of A, which they leave at 1, is left out.

Do not use it where a kind has one layer or few: there is nothing to share.

Errors: ``layers`` matches no linear layer, or one that has an adapter or a tied weight; shards that do not
divide a layer's inputs or outputs; a rank for which the pool has too few shared shards.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas
from trainwright.lm.layers import (
    Adapter,
    Carrier,
    as_linear_weight,
    compute_dtype,
    freeze,
    in_out,
    installed,
    linear_layers,
    pattern,
    put,
)

FILE = "mixture_of_shards.safetensors"
NAME = "shards"
"""The pools, on the model itself; a second method of this kind has ``shards_2``."""


class MixtureOfShards(Surgery):
    """LoRA matrices of pooled shards, which the layers of a kind share."""

    rank: int = 8
    """Rank of each layer's addition."""
    budget: int = 2
    """Rank of the LoRA that has as many trained numbers."""
    private: int = 1
    """How much of the budget belongs to single layers: rows of A and columns of B that are a layer's own."""
    shards: int = 2
    """Parts that each row of A and each column of B is cut into."""
    alpha: float = 16.0
    """Scale of the addition, divided by the rank."""
    dropout: float = 0.0
    """Share of the inputs of A that are dropped in training."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    example: ClassVar[dict[str, Any]] = {"rank": 3, "alpha": 6.0}

    def __post_init__(self) -> None:
        for name, value in (("rank", self.rank), ("budget", self.budget), ("shards", self.shards)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, not {value}.")
        if not 0 <= self.private <= min(self.budget, self.rank):
            raise ValueError(
                f"private must be at least 0 and no more than budget and rank, not {self.private}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for names in self.kinds(model).values() for name in names}

    def kinds(self, model: nn.Module) -> dict[str, list[str]]:
        """The layers that share a pool, by a name for the kind: their place in a block, and their shape."""
        found: dict[str, list[str]] = {}
        for name, layer in linear_layers(model, self.layers).items():
            inputs, outputs = in_out(layer)
            if inputs % self.shards or outputs % self.shards:
                raise UserError(
                    f"mixture_of_shards: shards = {self.shards} does not divide the {inputs} inputs and "
                    f"{outputs} outputs of {pattern(name)}; choose another number, or a narrower 'layers'."
                )
            place = "_".join(part for part in name.split(".") if not part.isdigit())
            found.setdefault(f"{place}_{outputs}x{inputs}", []).append(name)
        for names in found.values():
            asked, there = self.rank - self.private, (self.budget - self.private) * len(names)
            if asked > there:
                raise UserError(
                    f"mixture_of_shards: with rank = {self.rank} and private = {self.private} a layer shares "
                    f"{asked} rows, and the pool of {pattern(names[0])} has {there}: raise budget, or lower "
                    "rank or private."
                )
        return found

    def operate(self, model: nn.Module, ctx: Context) -> None:
        kinds, pools = self.kinds(model), Pools()
        freeze(model)
        pools.settings = self
        for kind, names in kinds.items():
            pool = Pool(
                model.get_submodule(names[0]), len(names), self, ctx.rng(f"mixture_of_shards/{kind}", at=0)
            )
            pools.add_module(kind, pool)
            for place, name in enumerate(names):
                draws = [ctx.rng(f"mixture_of_shards/{name}/{part}", at=0) for part in "AB"]
                put(
                    model,
                    name,
                    MosLinear(model.get_submodule(name), pool, self, self.index(place, len(names), draws)),
                )
        others = sum(isinstance(m, Pools) for m in model.children())
        model.add_module(f"{NAME}_{others + 1}" if others else NAME, pools)

    def index(self, place: int, layers: int, draws: list[torch.Generator]) -> list[Tensor]:
        """For A and for B the shards of the layer number ``place``: shared ones, then its own."""
        shared, own = (self.budget - self.private) * layers * self.shards, self.private * self.shards
        mine = torch.arange(shared + place * own, shared + (place + 1) * own)
        asked = (self.rank - self.private) * self.shards
        return [torch.cat([torch.randperm(shared, generator=draw)[:asked], mine]) for draw in draws]

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in installed(model, MosLinear, self).items():
            weight, (A, B) = as_linear_weight(layer), layer.matrices()
            weight.copy_(torch.addmm(weight.float(), B, A, alpha=self.alpha / self.rank))
            put(model, name, layer.plain())
        delattr(model, next(iter(installed(model, Pools, self))))

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(next(iter(installed(model, Pools, self).values())).named_parameters())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``mixture_of_shards.safetensors``: only the pools ``KIND.A``, ``KIND.B`` of each kind of layer."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


class Pools(Carrier):
    """All pools of one method."""

    settings: MixtureOfShards


class Pool(Carrier):
    """The shards of one kind of layer: A [budget layers shards, in / shards] and B [.., out / shards]."""

    def __init__(self, layer: nn.Module, layers: int, s: MixtureOfShards, rng: torch.Generator) -> None:
        super().__init__()
        (inputs, outputs), rows, device = in_out(layer), s.budget * layers * s.shards, layer.weight.device
        start = torch.empty(rows, inputs // s.shards).uniform_(
            -1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=rng
        )
        self.A = nn.Parameter(start.to(device))
        self.B = nn.Parameter(torch.zeros(rows, outputs // s.shards, device=device))


class MosLinear(Adapter):
    """A linear layer with an addition of shards."""

    index_A: Tensor
    index_B: Tensor

    def __init__(self, layer: nn.Module, pool: Pool, settings: MixtureOfShards, index: list[Tensor]) -> None:
        super().__init__(layer)
        self.settings, self.pool = settings, (pool,)  # in a tuple: it belongs to the model, not to this layer
        for name, places in zip(("index_A", "index_B"), index, strict=True):
            self.register_buffer(name, places.to(self.weight.device), persistent=False)

    def matrices(self) -> tuple[Tensor, Tensor]:
        """A [rank, in] and B [out, rank], float32."""
        (pool,), rank = self.pool, self.settings.rank
        return pool.A.index_select(0, self.index_A).view(rank, -1), pool.B.index_select(0, self.index_B).view(
            rank, -1
        ).T

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        rows, (A, B) = x.reshape(-1, self.in_features).to(kind), self.matrices()
        low = F.linear(F.dropout(rows, self.settings.dropout, self.training), A.to(kind))
        y = self.linear(rows).addmm_(low, B.to(kind).T, alpha=self.settings.alpha / self.settings.rank)
        return y.view(*x.shape[:-1], self.out_features)
