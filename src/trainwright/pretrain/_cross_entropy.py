"""Cross-entropy of a linear head in tiles: the logits of all positions and words at once are never there.

With hidden states h [N, H], head W [V, H] and b [V], targets t [N]:
    z = h W' + b,   loss = logsumexp(z) - z[t],   d loss / d z = softmax(z) - onehot(t).
Both passes walk over tiles of z that fit into a cache; the backward pass computes them again from h and W. What is kept between
the passes is h, W, b, t and one number a position. Products are taken in the autocast dtype, the rest in float32. On a CPU this
is also the quick way: a tile is read while it is still in the cache.
"""
from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

import torch
from torch import Tensor

CPU_TILE, GPU_TILE = 1024, 4096
"""Positions, and words, of a tile: 4 MiB of float32 for a core's cache, 64 MiB for a GPU that wants large products."""


def tiled_cross_entropy(hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, compiled: bool = False) -> Tensor:
    """Losses [N], float32, of hidden states [N, H]; ``targets`` [N] are words, never -100. Differentiable once."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.promote_types(hidden.dtype, weight.dtype)
    return _Tiled.apply(hidden, weight, bias, targets, dtype, compiled)


class _Tiled(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, dtype: torch.dtype,
                compiled: bool) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            h, w, b = hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
            score, _ = _kernels(compiled)
            total = torch.full_like(targets, float("-inf"), dtype=torch.float32)
            right = torch.zeros_like(total)
            for rows, words in _tiles(h, w):
                partial, hit = score(_logits(h, w, b, rows, words), targets[rows] - words.start)
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
            h, w, b = hidden.to(ctx.dtype), weight.to(ctx.dtype), None if bias is None else bias.to(ctx.dtype)
            _, slope = _kernels(ctx.compiled)
            for rows, words in _tiles(h, w):
                g = slope(_logits(h, w, b, rows, words), total[rows], upstream[rows], targets[rows] - words.start)
                if grad_h is not None:
                    _add_product(grad_h[rows], g, w[words])
                if grad_w is not None:
                    _add_product(grad_w[words], g.T, h[rows])
                if grad_b is not None:
                    grad_b[words] += g.sum(0, dtype=torch.float32)
        return (None if grad_h is None else grad_h.to(hidden.dtype), None if grad_w is None else grad_w.to(weight.dtype),
                None if grad_b is None else grad_b.to(bias.dtype), None, None, None)


def _tiles(h: Tensor, w: Tensor) -> Iterator[tuple[slice, slice]]:
    """Slices of positions and words; the words' loop is the outer one, so that a part of the head stays in the cache."""
    size = CPU_TILE if h.device.type == "cpu" else GPU_TILE
    for word, row in product(range(0, len(w), size), range(0, len(h), size)):
        yield slice(row, min(row + size, len(h))), slice(word, min(word + size, len(w)))


def _logits(h: Tensor, w: Tensor, b: Tensor | None, rows: slice, words: slice) -> Tensor:
    return h[rows] @ w[words].T if b is None else torch.addmm(b[words], h[rows], w[words].T)


def _add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """``total += a @ b`` where the sum is float32 and the product may be less."""
    if a.dtype == total.dtype:
        total.addmm_(a, b)
    else:
        total += a @ b


def _score(z: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Of a tile: its logsumexp, and the logit of each target that lies in it (else 0). ``place`` is the target's column."""
    z = z.float()
    inside = (place >= 0) & (place < z.shape[1])
    right = z.gather(1, place.clamp(0, z.shape[1] - 1)[:, None])[:, 0]
    return torch.logsumexp(z, -1), right * inside


def _slope(z: Tensor, total: Tensor, upstream: Tensor, place: Tensor) -> Tensor:
    """Of a tile: the gradient with respect to its logits, in their dtype. Works in place, since the tile is nobody else's."""
    inside = (place >= 0) & (place < z.shape[1])
    p = z.float().sub_(total[:, None]).exp_()
    p.scatter_add_(1, place.clamp(0, z.shape[1] - 1)[:, None], -inside.float()[:, None])
    return p.mul_(upstream[:, None]).to(z.dtype)


def _slope_fused(z: Tensor, total: Tensor, upstream: Tensor, place: Tensor) -> Tensor:
    """The same as one kernel that reads and writes the tile once."""
    p = (z.float() - total[:, None]).exp()
    right = torch.arange(z.shape[1], device=z.device) == place[:, None]
    return (torch.where(right, p - 1, p) * upstream[:, None]).to(z.dtype)


@cache
def _kernels(compiled: bool) -> tuple[Any, Any]:
    return (torch.compile(_score), torch.compile(_slope_fused)) if compiled else (_score, _slope)
