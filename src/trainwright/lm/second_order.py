"""Change a weight matrix column by column so that what the layer makes of given inputs changes least.

With H = X^T X of a layer's inputs X [positions, in], a change D [out, in] of its weights costs tr(D H D^T).
Where a column j is given new values, the columns behind it take up the error as optimal brain surgery says,

    W[:, k] <- W[:, k] - (W_j - Q_j) / [H_j^-1]_jj * [H_j^-1]_jk,    H_j: the rows and columns of H from j on,

and row j of the upper Cholesky factor of H^-1 holds the row [H_j^-1]_j of each j, divided by the square root
of its first entry. So one factorization serves all columns.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core import masks, sharding
from trainwright.core.context import Context
from trainwright.lm.calibration import block_inputs, through_blocks
from trainwright.lm.layers import as_linear_weight

BLOCK = 128
"""Columns after which the errors go on to all columns behind them at once."""


class Seen(NamedTuple):
    """A linear layer and what it was given."""

    name: str
    layer: nn.Module
    gram: Tensor
    """X^T X, float32 [in, in], over all ranks."""
    positions: int
    """Rows of X."""


@torch.no_grad()
def looked_at(model: nn.Module, ctx: Context, method: str, layers: dict[str, nn.Module]) -> Iterator[Seen]:
    """Each layer with its inputs, block after block; what the caller does to a block's layers
    is what the next blocks see."""
    grams: dict[nn.Module, Tensor] = {}
    counts: dict[nn.Module, int] = {}

    def look(layer: nn.Module, x: Tensor) -> None:
        x = x.float()
        if layer not in grams:
            grams[layer], counts[layer] = x.new_zeros(x.shape[1], x.shape[1]), 0
        grams[layer].addmm_(x.T, x)
        counts[layer] += len(x)

    for names in through_blocks(model, block_inputs(model, ctx, method), look, layers):
        for name in names:
            layer = layers[name]
            gram = sharding.summed(grams.pop(layer))
            positions = sharding.summed(torch.tensor(counts.pop(layer), device=gram.device))
            yield Seen(name, layer, gram, int(positions))


def say_how_few(ctx: Context, method: str, seen: list[tuple[str, int, int]]) -> None:
    """Tell where fewer calibration tokens were seen than a layer is wide.

    Args:
        seen: of each layer its name, its inputs, and the tokens that it saw.
    """
    short = [one for one in seen if one[2] < one[1]]
    if short:
        name, wide, tokens = max(short, key=lambda one: one[1])
        ctx.show(method, f"{len(short)} of {len(seen)} layers saw fewer calibration tokens than they have "
                         f"inputs ({name}: {tokens:,} of {wide:,}): what it found fits those tokens and may "
                         "be worse than a method without data. Raise 'calibration'.")


def factor(gram: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor [in, in] of (gram + damping * mean of its diagonal)^-1, in float32.

    Inputs that were always zero need no rule of their own: the damping makes their weights
    cheap to change.
    """
    wide = gram.float() if gram.device.type == "mps" else gram.double()
    mean = wide.diagonal().mean()
    wide = wide + damping * (mean if mean > 0 else torch.ones_like(mean)) * torch.eye(
        len(wide), dtype=wide.dtype, device=wide.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(wide))
    return torch.linalg.cholesky(inverse, upper=True).float()


def sweep(weight: Tensor, upper: Tensor, choose: Callable[[int, Tensor], Tensor],
          block: int = BLOCK) -> Tensor:
    """New values for all columns, in order, each of which corrects the error of those before it.

    Args:
        weight: [out, in], float32; not changed.
        upper: what ``factor`` gave.
        choose: is given a column's number j and the matrix as it then stands (up to date from j to the end of
            its block), and says the column's final values [out].
        block: columns of a block.
    """
    w = weight.clone()
    for start in range(0, w.shape[1], block):
        end = min(start + block, w.shape[1])
        errors = w.new_zeros(len(w), end - start)
        for j in range(start, end):
            new = choose(j, w)
            error = (w[:, j] - new) / upper[j, j]
            w[:, j] = new
            w[:, j + 1:end].addr_(error, upper[j, j + 1:end], alpha=-1)
            errors[:, j - start] = error
        w[:, end:].addmm_(errors, upper[start:end, end:], alpha=-1)
    return w


def held(model: nn.Module, name: str, layer: nn.Module) -> Tensor:
    """Which weights ([out, in]) of a layer masks have left until now."""
    mask = masks.of(model).get(f"{name}.weight")
    weight = as_linear_weight(layer)
    if mask is None:
        return torch.ones_like(weight, dtype=torch.bool)
    return mask.T if as_linear_weight(layer) is not layer.weight else mask
