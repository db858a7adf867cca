"""NOLA: LoRA whose matrices are mixtures of fixed random ones, of which only the coefficients are trained.

"NOLA: Networks as Linear Combination of Low Rank Random Basis" (arXiv 2310.02556). For a frozen layer W [out,
in],

    y = W x + s B A x,   A = A_0 + sum_i a_i A_i,   B = sum_j b_j B_j,   s = alpha / rank,

where A_i [rank, in] and B_j [out, rank] are uniform in +-1/sqrt(bases), and a and b (``bases`` numbers each)
are trained and start at zero. Storing a layer takes 2 ``bases`` numbers, whatever its rank and size. The
paper's formula has no A_0. This follows its released language-model code, which trains around a frozen A_0,
uniform in +-1/sqrt(in): with a, b and A_0 all at zero no gradient would ever flow; with it b moves at the
first step, and a after that.

The matrices are numbered, not stored: each forward or backward pass makes them anew from a seed, a part at a
time, so that memory does not depend on ``bases`` and every device makes the same ones. The released code
reseeds the global generator in each pass, which repeats the dropout of other layers, and its way of making
them in parts does not run. The work is ``bases`` times ``rank`` times (in + out) numbers a layer and pass:
with few tokens in a batch it costs more than the layer itself.

The addition is folded into W for export. The delta beside it holds the coefficients, and the seed in
``surgery.json``. a and b are float32; the paper uses learning rates of 1e-3 to 5e-3 without weight decay
(``adamw`` does not decay 1-D parameters).

Do not use it where the size of the adapter does not matter: LoRA of the same rank is faster.

Errors: ``layers`` matches no linear layer, or one that has an adapter or a tied weight.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.core.settings import Count
from trainwright.lm import deltas
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    installed,
    linear_layers,
    put,
)

FILE = "nola.safetensors"
ENTRIES = {"cpu": 1 << 20}
"""Entries that are made at a time: enough for the calls not to count, and no more memory than that."""
ENTRIES_ELSEWHERE = 1 << 24
MIX = ((16, 0x7FEB352D), (15, 0x846CA68B))
"""Shifts and odd factors of a 32-bit mixer, each of whose outputs depends on all inputs (lowbias32)."""
STEP = 0x9E3779B97F4A7C15
"""Distance of the numbers from which the keys of neighbouring matrices are mixed (SplitMix64)."""


class Nola(Surgery):
    """LoRA matrices as mixtures of random ones, of which the coefficients are trained."""

    bases: Count = 512
    """Random matrices in each mixture, and so coefficients: two times as many for each layer."""
    rank: Count = 8
    """Rank of the addition."""
    alpha: float = 8.0
    """Scale of the addition, divided by the rank."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.[qv]_proj."""
    example: ClassVar[dict[str, Any]] = {"bases": 8, "rank": 2, "alpha": 4.0}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(
                model,
                name,
                NolaLinear(
                    layer, self, [ctx.rng(f"nola/{name}/{part}", at=0).initial_seed() for part in "AB"]
                ),
            )

    def mine(self, model: nn.Module) -> dict[str, NolaLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, NolaLinear, self)

    def coefficients(self, model: nn.Module) -> dict[str, Tensor]:
        return {
            f"{n}.{part}": getattr(m, part)
            for n, m in self.mine(model).items()
            for part in ("nola_a", "nola_b")
        }

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight, (A, B) = as_linear_weight(layer), layer.matrices()
            weight.copy_(torch.addmm(weight.float(), B, A, alpha=self.alpha / self.rank))
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``nola.safetensors``: only ``NAME.nola_a`` and ``NAME.nola_b`` [bases] of each layer."""
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
        start = uniform(
            seed_a, self.settings.bases, 1, rank * self.in_features, self.weight.device
        )  # behind the last
        A = combine(self.nola_a, seed_a, rank, self.in_features)
        return A + start.view_as(A) / math.sqrt(self.in_features), combine(
            self.nola_b, seed_b, self.out_features, rank
        )

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        rows = x.reshape(-1, self.in_features).to(kind)
        A, B = self.matrices()
        y = self.linear(rows).addmm_(
            F.linear(rows, A.to(kind)), B.to(kind).T, alpha=self.settings.alpha / self.settings.rank
        )
        return y.view(*x.shape[:-1], self.out_features)


# ---- random matrices that are numbered, not stored ---------------------------------------------------------
# Every entry is a hash of its seed, its matrix and its place. A generator would have to draw all entries
# before it, and would draw others on another device. Here only wrapping integers of 32 bits are computed,
# so that every device gets the same bits, in any order and in parts of any size.


def uniform(seed: int, first: int, count: int, entries: int, device: torch.device) -> Tensor:
    """Matrices ``first`` to ``first + count`` of the family ``seed``, [count, entries], float32.

    Uniform over the middles of the 2^16 parts of (-1, 1); a hash of 32 bits makes two neighbouring entries.
    """
    low, high = _keys(seed, first, count)
    pairs = torch.arange((entries + 1) // 2, dtype=torch.int32, device=device).mul_(
        _signed(STEP >> 32 | 1, 32)
    )
    h = _mix(_mix(pairs + low.to(device)[:, None]).bitwise_xor_(high.to(device)[:, None]))
    return h.view(torch.int16)[:, :entries].float().add_(0.5).mul_(2**-15)


def _keys(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Two keys of 32 bits for each matrix: SplitMix64's outputs number ``first`` and on."""
    z = torch.arange(first + 1, first + count + 1).mul_(_signed(STEP, 64)).add_(seed)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(_signed(factor, 64))
    z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
    both = z.view(torch.int32).view(-1, 2)
    return both[:, 0], both[:, 1]


def _mix(h: Tensor) -> Tensor:
    for shift, factor in MIX:
        h.bitwise_xor_((h >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(_signed(factor, 32))
    return h.bitwise_xor_((h >> 16).bitwise_and_(0xFFFF))


def _signed(x: int, bits: int) -> int:
    """The same bits as a signed number, which is what tensors take."""
    return x - (1 << bits) if x >> (bits - 1) else x


def _parts(count: int, entries: int, device: torch.device) -> list[tuple[int, int]]:
    """First and number of the matrices of each part."""
    most = max(1, ENTRIES.get(device.type, ENTRIES_ELSEWHERE) // entries)
    return [(first, min(most, count - first)) for first in range(0, count, most)]


@torch.library.custom_op("trainwright::combine_bases", mutates_args=())
def combine(coefficients: Tensor, seed: int, rows: int, columns: int) -> Tensor:
    """The sum over i of c_i M_i, [rows, columns], M_i uniform in (-1, 1) / sqrt(number of coefficients).

    Neither forward nor backward ever holds more than a part of the matrices; only the coefficients have a
    gradient.
    """
    with torch.autocast(coefficients.device.type, enabled=False):
        total = coefficients.new_zeros(rows * columns)
        for first, count in _parts(len(coefficients), rows * columns, coefficients.device):
            total.addmv_(
                uniform(seed, first, count, rows * columns, coefficients.device).T,
                coefficients[first : first + count],
            )
        return total.view(rows, columns).div_(math.sqrt(len(coefficients)))


@torch.library.custom_op("trainwright::project_on_bases", mutates_args=())
def project(matrix: Tensor, seed: int, count: int) -> Tensor:
    """The inner products of ``matrix`` with M_1 to M_count: the transpose of ``combine``."""
    with torch.autocast(matrix.device.type, enabled=False):
        flat = matrix.flatten().float()
        parts = [
            uniform(seed, first, n, len(flat), matrix.device) @ flat
            for first, n in _parts(count, len(flat), matrix.device)
        ]
        return torch.cat(parts).div_(math.sqrt(count))


@combine.register_fake
def _(coefficients: Tensor, seed: int, rows: int, columns: int) -> Tensor:
    return coefficients.new_empty(rows, columns)


@project.register_fake
def _(matrix: Tensor, seed: int, count: int) -> Tensor:
    return matrix.new_empty(count, dtype=torch.float32)


def _setup(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, int, int, int], output: Tensor
) -> None:
    ctx.seed, ctx.count = inputs[1], len(inputs[0])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    return project(grad, ctx.seed, ctx.count), None, None, None


combine.register_autograd(_backward, setup_context=_setup)
