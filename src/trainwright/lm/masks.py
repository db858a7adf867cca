"""What methods share that hold some weights at zero: which weights those may be, and how zero they stay.

A mask is the leaf ``hidden`` of the state (bool, shaped and sharded like the parameter, one byte a weight):
true where a weight is held at zero. A hidden weight *is* zero; it is not multiplied with zero on its way
through the model. So its gradient is the dense one, and a plain checkpoint is the sparse model.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from trainwright.core import sharding
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors
from trainwright.lm.layers import block_names

LAYERS = (nn.Linear, Conv1D, _ConvNd)


def maskable(model: nn.Module, params: str) -> Tensors:
    """Weights of the linear and convolution layers in a model's repeated blocks, by name, as far as
    ``params`` matches them.

    Stacked experts (three dimensions, in a module of their own) are among them; embeddings, norms, biases and
    an output head outside of the blocks are not. Where nothing repeats, as in a small vision model, all
    layers count.

    Raises:
        UserError: there is none in the model, or ``params`` matches none.
    """
    inside = tuple(f"{name}." for name in block_names(model))
    every = {
        f"{n}.{p}".lstrip("."): t
        for n, m in model.named_modules()
        for p, t in m.named_parameters(recurse=False)
        if (isinstance(m, LAYERS) and t.ndim > 1) or (t.ndim == 3 and min(t.shape) > 1)
    }
    every = {n: t for n, t in every.items() if n.startswith(inside)} or every
    found = match(params, every)
    if not found and not params.startswith("!"):
        some = ", ".join(list(every)[:2]) or "none"
        raise UserError(
            f"params = {params!r} matches no weight that can be pruned: those are the weights of linear and "
            f"convolution layers in the model's blocks ({some} …)."
        )
    return {n: every[n] for n in found}


def drawn(weight: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """A mask that hides exactly ``count`` weights, all choices equally likely."""
    hidden = torch.zeros(weight.numel(), dtype=torch.bool)
    hidden[torch.randperm(weight.numel(), generator=rng)[:count]] = True
    return hidden.view(weight.shape).to(weight.device)


def masked(updates: Tensors, state: State, ctx: Context) -> Tensors:
    """The updates, zero where a weight is hidden."""
    out = dict(updates)
    for name, leaf in state["param"].items():
        if name in out:
            if ctx.grads:                                    # an update reads the gradients as they came
                out[name] = out[name].clone()
            zero(out[name], leaf["hidden"])
    return out


def hide(params: Tensors, state: State, ctx: Context) -> None:
    """Zero hidden weights, and what any method remembers of them (moments, averages)."""
    for name, leaf in state["param"].items():
        zero(params[name], leaf["hidden"])
        ctx.forget(name, leaf["hidden"])


def zero(t: Tensor, entries: Tensor) -> None:
    """Zeros in place at the entries given, each rank its own part."""
    sharding.local(t.detach()).masked_fill_(sharding.local(entries), 0)


def largest(weights: Tensors, hidden: Tensors, count: int) -> Tensors:
    """Masks that leave visible exactly the ``count`` weights of largest magnitude, of all matrices together.

    Only visible ones stay. Of equal magnitudes (in bfloat16 there are many) those that come first do. Nothing
    is sorted, and of a sharded matrix no more than the new mask is gathered.
    """
    sizes = {n: w.detach().abs().float().where(~hidden[n], -1.0) for n, w in weights.items()}
    limit = threshold([sharding.local(s) for s in sizes.values()], count)
    left = count - int(sharding.total(sum(int((sharding.local(s) > limit).sum()) for s in sizes.values())))
    out = {}
    for name, size in sizes.items():
        ties = sharding.full(size == limit)
        stay = ties & (ties.flatten().cumsum(0) <= left).view(ties.shape)
        left -= int(stay.sum())
        out[name] = sharding.like(~(sharding.full(size > limit) | stay), weights[name])
    return out


def threshold(sizes: list[Tensor], count: int) -> float:
    """The ``count``-th largest of the numbers on all ranks, or 0 where fewer are above: found by halving, 31
    times.

    Numbers of float32 that are not negative have the order of their bits, read as whole numbers; negative
    ones are below them.
    """
    words = [s.view(torch.int32) for s in sizes]
    low, high = 0, 0x7F800000                                # 0 and infinity
    while low < high:
        middle = (low + high + 1) // 2
        if sharding.total(sum(int((w >= middle).sum()) for w in words)) >= count:
            low = middle
        else:
            high = middle - 1
    return float(torch.tensor(low, dtype=torch.int32).view(torch.float32))
