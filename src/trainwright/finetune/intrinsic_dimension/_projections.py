"""Fixed random maps from d numbers to all parameters of a model, with columns of length 1 over all of them.

Each parameter has rows of its own, drawn from a generator of its own: a map of its offsets from the d numbers
and back.
"""
from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.errors import UserError

MOST_BYTES = 1 << 32
"""What dense and sparse matrices may take together."""
Rng = Callable[[str], torch.Generator]


class Subspace(nn.Module):
    """The trained theta_d [d], and the maps by parameter name. No checkpoint holds what is random in them."""

    def __init__(self, maps: dict[str, nn.Module], dimension: int, device: torch.device) -> None:
        super().__init__()
        self.theta_d = nn.Parameter(torch.zeros(dimension, device=device))
        self.places = {name: i for i, name in enumerate(maps)}
        self.maps = nn.Sequential(*maps.values())  # no list: the model's own blocks are looked for as lists

    def offset(self, name: str, shape: torch.Size) -> Tensor:
        """How far a parameter is from where it started, float32."""
        with torch.autocast(self.theta_d.device.type, enabled=False):
            return self.maps[self.places[name]](self.theta_d).view(shape)


def buffers(module: nn.Module, device: torch.device, tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        module.register_buffer(name, tensor.to(device), persistent=False)


def check_bytes(needed: float, kind: str) -> None:
    if needed > MOST_BYTES:
        raise UserError(
            f'a {kind} projection would take {needed / 2**30:.1f} GiB: set projection = "fastfood", '
            "or a lower dimension."
        )


# ---- dense: Gaussian entries -------------------------------------------------------------------------------


class Dense(nn.Module):
    """offset = P theta_d, with P [entries, d] kept."""

    def __init__(self, entries: int, dimension: int, rng: torch.Generator, device: torch.device) -> None:
        super().__init__()
        buffers(self, device, {"P": torch.randn(entries, dimension, generator=rng)})

    def squares(self) -> Tensor:
        """Squared lengths of the columns, as far as these rows go."""
        return self.P.square().sum(0, dtype=torch.float64)

    def scale(self, factors: Tensor) -> None:
        self.P.mul_(factors)

    def forward(self, theta: Tensor) -> Tensor:
        return self.P @ theta


def dense(sizes: dict[str, int], dimension: int, rng: Rng, device: torch.device) -> dict[str, nn.Module]:
    """Entries ~ N(0, 1), then each column divided by its length."""
    check_bytes(4.0 * dimension * sum(sizes.values()), "dense")
    return unit_columns({n: Dense(size, dimension, rng(n), device) for n, size in sizes.items()})


# ---- sparse: signs in a few places -------------------------------------------------------------------------


class Sparse(nn.Module):
    """offset = P theta_d; an entry of P is nonzero with probability 1 / sqrt(entries), of either sign."""

    def __init__(self, entries: int, dimension: int, rng: torch.Generator, device: torch.device) -> None:
        super().__init__()
        density, total = 1 / math.sqrt(entries), entries * dimension
        number = int(
            total * density + 6 * math.sqrt(total * density) + 16
        )  # a draw that is seldom not enough
        at = torch.tensor([-1])
        while at[-1] < total:  # from one entry to the next
            gaps = torch.ones(number, dtype=torch.float64)
            gaps = gaps.geometric_(density, generator=rng) if density < 1 else gaps
            at = torch.cat([at, gaps.long().cumsum(0) + at[-1]])
        at = at[1:][at[1:] < total]
        row, column = at // dimension, at % dimension
        values = torch.randint(2, (len(at),), generator=rng).mul_(2).sub_(1).float()
        order = torch.sort(column, stable=True).indices
        buffers(self, device, {"row": row, "column": column, "values": values, "order": order,
                               "of_row": torch.bincount(row, minlength=entries),
                               "of_column": torch.bincount(column, minlength=dimension)})

    def squares(self) -> Tensor:
        return self.of_column.double()

    def scale(self, factors: Tensor) -> None:
        self.values.mul_(factors.float()[self.column])

    def forward(self, theta: Tensor) -> Tensor:
        return _SparseProduct.apply(theta, self)


class _SparseProduct(torch.autograd.Function):
    """Sums of segments, which are taken in one order on every device."""

    @staticmethod
    def forward(ctx: Any, theta: Tensor, p: Sparse) -> Tensor:
        ctx.p = p
        return torch.segment_reduce(p.values * theta[p.column], "sum", lengths=p.of_row, initial=0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        p = ctx.p
        parts = (p.values * grad[p.row])[p.order]
        return torch.segment_reduce(parts, "sum", lengths=p.of_column, initial=0.0), None


def sparse(sizes: dict[str, int], dimension: int, rng: Rng, device: torch.device) -> dict[str, nn.Module]:
    """Density 1 / sqrt(size) in each parameter, then each column divided by its length over all of them."""
    check_bytes(28.0 * dimension * sum(math.sqrt(size) for size in sizes.values()), "sparse")
    return unit_columns({n: Sparse(size, dimension, rng(n), device) for n, size in sizes.items()})


def unit_columns(maps: dict[str, Any]) -> dict[str, nn.Module]:
    """Divide columns by their lengths over all parameters: else each would have its own learning rate."""
    factors = torch.stack([m.squares() for m in maps.values()]).sum(0).clamp(min=1e-30).rsqrt()
    for m in maps.values():
        m.scale(factors.to(torch.float32))
    return maps


# ---- Fastfood: a product of fast transforms ----------------------------------------------------------------


class Fastfood(nn.Module):
    """offset = (H (G * (H (B * theta_d))[Pi]))[:entries] / scale, in time L log L, with 9 bytes kept for each
    of the L entries.

    L is the next power of two that holds the entries and theta_d, H the Walsh-Hadamard matrix (entries +-1),
    B signs, Pi a permutation, G normal. Each column's expected squared length is entries / all.
    """

    def __init__(
        self, entries: int, dimension: int, rng: torch.Generator, device: torch.device, all_entries: int
    ) -> None:
        super().__init__()
        length = 1 << (max(entries, dimension) - 1).bit_length()
        gauss = torch.randn(length, generator=rng)
        scale = math.sqrt(length * float(gauss.double().square().sum())) * math.sqrt(all_entries / length)
        self.entries = entries
        buffers(
            self,
            device,
            {
                "signs": torch.randint(2, (length,), generator=rng).mul_(2).sub_(1).to(torch.int8),
                "places": torch.randperm(length, generator=rng, dtype=torch.int32),
                "gauss": gauss / scale,
            },
        )

    def forward(self, theta: Tensor) -> Tensor:
        return _FastfoodProduct.apply(theta, self)


class _FastfoodProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, theta: Tensor, f: Fastfood) -> Tensor:
        ctx.f, ctx.dimension = f, len(theta)
        x = theta.new_zeros(len(f.gauss))
        x[:len(theta)] = theta * f.signs[:len(theta)]
        return hadamard(hadamard(x)[f.places].mul_(f.gauss))[:f.entries].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        f, x = ctx.f, grad.new_zeros(len(ctx.f.gauss))
        x[:len(grad)] = grad
        x = hadamard(x).mul_(f.gauss)
        back = hadamard(torch.empty_like(x).index_copy_(0, f.places.long(), x))
        return back[:ctx.dimension] * f.signs[:ctx.dimension], None


def hadamard(x: Tensor) -> Tensor:
    """The unnormalised Walsh-Hadamard transform of a vector whose length is a power of two, in a new vector.

    Half of the steps go over the rows of the vector laid out as a square, the others over its columns as
    rows, so that long stretches of memory are worked on together.
    """
    wide = 1 << (len(x).bit_length() // 2)
    return _over_rows(_over_rows(x.view(-1, wide).clone()).T.contiguous()).T.reshape(-1)


def _over_rows(x: Tensor) -> Tensor:
    near = 1
    while near < len(x):
        a, b = x.view(-1, 2, near, x.shape[1]).unbind(1)
        less = a - b
        a.add_(b)
        b.copy_(less)
        near *= 2
    return x


def fastfood(sizes: dict[str, int], dimension: int, rng: Rng, device: torch.device) -> dict[str, nn.Module]:
    """A transform of its own for each parameter, so that no vector longer than the longest is made."""
    every = sum(sizes.values())
    return {n: Fastfood(size, dimension, rng(n), device, every) for n, size in sizes.items()}


KINDS = {"dense": dense, "sparse": sparse, "fastfood": fastfood}
