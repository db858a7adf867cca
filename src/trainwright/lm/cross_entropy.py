"""Cross-entropy of a linear head in tiles: the logits of all positions and words at once are never there.

With hidden states h [N, H], head W [V, H] and b [V], targets t [N]:
    z = h W' + b,   loss = logsumexp(z) - z[t],   d loss / d z = softmax(z) - onehot(t).
All passes walk over tiles of z that fit into a cache. Where the head is trained, the backward pass computes
them again from h and W, and what is kept between the passes is h, W, b, t and one number a position. Where
it is frozen, the forward pass already finds d loss / dh = softmax(z) W - W[t], as attention does with W for
keys and values, and keeps that alone: two products instead of three, and each tile is made once. Products
are taken in the autocast dtype, the rest in float32. On a CPU this is also the quick way: a tile is read
while it is still in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

CPU_TILE, GPU_TILE = 1024, 4096
"""Positions, and words, of a tile: 4 MiB of float32 for a core's cache, 64 MiB for a GPU that
wants large products."""
MOST_PLANNED = 256
"""Tiles in a plan, which costs milliseconds for each."""
LEAST = torch.finfo(torch.float32).min
"""Taken for the largest logit of a tile whose words are all impossible (-inf)."""


def tiled_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, compiled: bool = False
) -> Tensor:
    """Losses [N], float32, of hidden states [N, H]; ``targets`` [N] are words, never
    -100. Differentiable once."""
    kind = hidden.device.type
    dtype = (
        torch.get_autocast_dtype(kind)
        if torch.is_autocast_enabled(kind)
        else torch.promote_types(hidden.dtype, weight.dtype)
    )
    frozen = not weight.requires_grad and (bias is None or not bias.requires_grad)
    way = _Frozen if frozen and hidden.requires_grad and torch.is_grad_enabled() else _Tiled
    return way.apply(hidden, weight, bias, targets, dtype, compiled)


class _Frozen(torch.autograd.Function):
    """A gradient of h alone, found in the forward pass: sums over words are kept relative to the
    largest logit so far."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        compiled: bool,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = cast(hidden, weight, bias, dtype)
            top = torch.full_like(targets, LEAST, dtype=torch.float32)
            norm, right, slope = (
                torch.zeros_like(top),
                torch.zeros_like(top),
                torch.zeros_like(hidden, dtype=torch.float32),
            )
            part = _kernels(compiled).part
            for rows, words in tiles(h, w):
                p, top[rows], shrink, total, hit = part(
                    logits_of(h, w, b, rows, words), top[rows], targets[rows] - words.start
                )
                norm[rows] = norm[rows] * shrink + total
                right[rows] += hit
                add_product(slope[rows].mul_(shrink[:, None]), p, w[words])
            slope.div_(norm[:, None]).sub_(w[targets])
        ctx.save_for_backward(slope.to(hidden.dtype))
        return top + norm.log() - right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (slope,) = ctx.saved_tensors
        return (upstream[:, None] * slope).to(slope.dtype), None, None, None, None, None


class _Tiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        dtype: torch.dtype,
        compiled: bool,
    ) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = cast(hidden, weight, bias, dtype)
            score = _kernels(compiled).score
            total = torch.full_like(targets, float("-inf"), dtype=torch.float32)
            right = torch.zeros_like(total)
            for rows, words in tiles(h, w):
                partial, hit = score(logits_of(h, w, b, rows, words), targets[rows] - words.start)
                total[rows] = torch.logaddexp(total[rows], partial)
                right[rows] += hit
        ctx.save_for_backward(hidden, weight, bias, targets, total)
        ctx.dtype, ctx.compiled = dtype, compiled
        return total - right

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets, total = ctx.saved_tensors
        needs_h, needs_w, needs_b = ctx.needs_input_grad[:3]
        grad_h = torch.zeros_like(hidden, dtype=torch.float32) if needs_h else None
        grad_w = torch.zeros_like(weight, dtype=torch.float32) if needs_w else None
        grad_b = torch.zeros_like(bias, dtype=torch.float32) if needs_b else None
        upstream = upstream.float()
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = cast(hidden, weight, bias, ctx.dtype)
            slope = _kernels(ctx.compiled).slope
            for rows, words in tiles(h, w):
                g = slope(
                    logits_of(h, w, b, rows, words), total[rows], upstream[rows], targets[rows] - words.start
                )
                if grad_h is not None:
                    add_product(grad_h[rows], g, w[words])
                if grad_w is not None:
                    add_product(grad_w[words], g.T, h[rows])
                if grad_b is not None:
                    grad_b[words] += g.sum(0, dtype=torch.float32)
        return (
            None if grad_h is None else grad_h.to(hidden.dtype),
            None if grad_w is None else grad_w.to(weight.dtype),
            None if grad_b is None else grad_b.to(bias.dtype),
            None,
            None,
            None,
        )


def cast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    return hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def tiles(h: Tensor, w: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of positions and words; the words' loop is the outer one, so that a part of the
    head stays in the cache. Where nothing is computed (in a plan), fewer and larger ones say as much."""
    size = CPU_TILE if h.device.type == "cpu" else GPU_TILE
    while isinstance(h, FakeTensor) and len(w) * len(h) > MOST_PLANNED * size**2:
        size *= 2
    for word, row in product(range(0, len(w), size), range(0, len(h), size)):
        yield slice(row, min(row + size, len(h))), slice(word, min(word + size, len(w)))


def logits_of(h: Tensor, w: Tensor, b: Tensor | None, rows: slice, words: slice) -> Tensor:
    return h[rows] @ w[words].T if b is None else torch.addmm(b[words], h[rows], w[words].T)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` where the sum is float32 and the product may be less."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _score(z: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Of a tile: its logsumexp, and what ``hit_of`` finds. Works in place: the tile is nobody else's."""
    z = z.float()
    hit, top = hit_of(z, place), z.amax(1).clamp_(min=LEAST)
    return z.sub_(top[:, None]).exp_().sum(1).log_().add_(top), hit


def hit_of(z: Tensor, place: Tensor) -> Tensor:
    """The logit of each target that lies in a tile (else 0). ``place`` is the target's column."""
    inside = (place >= 0) & (place < z.shape[1])
    return torch.where(inside, z.gather(1, place.clamp(0, z.shape[1] - 1)[:, None])[:, 0], 0)


def _part(z: Tensor, top: Tensor, place: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of a tile: exp(z - the largest logit so far) in its dtype, that largest, the factor for sums that were
    relative to the one before (``top``), their sum, and what ``hit_of`` finds. In place, too."""
    kind, z = z.dtype, z.float()
    hit, new = hit_of(z, place), torch.maximum(top, z.amax(1))
    p = z.sub_(new[:, None]).exp_()
    return p.to(kind), new, torch.exp(top - new), p.sum(1), hit


def _slope(z: Tensor, total: Tensor, upstream: Tensor, place: Tensor) -> Tensor:
    """Of a tile: the gradient with respect to its logits, in their dtype. In place, too."""
    inside = (place >= 0) & (place < z.shape[1])
    p = z.float().sub_(total[:, None]).exp_()
    p.scatter_add_(1, place.clamp(0, z.shape[1] - 1)[:, None], -inside.float()[:, None])
    return p.mul_(upstream[:, None]).to(z.dtype)


def _slope_fused(z: Tensor, total: Tensor, upstream: Tensor, place: Tensor) -> Tensor:
    """The same as one kernel that reads and writes the tile once."""
    p = (z.float() - total[:, None]).exp()
    right = torch.arange(z.shape[1], device=z.device) == place[:, None]
    return (torch.where(right, p - 1, p) * upstream[:, None]).to(z.dtype)


class _Kernels(NamedTuple):
    score: Any
    part: Any
    slope: Any


@cache
def _kernels(compiled: bool) -> _Kernels:
    plain = _Kernels(_score, _part, _slope)
    return _Kernels(*map(torch.compile, (_score, _part, _slope_fused))) if compiled else plain
