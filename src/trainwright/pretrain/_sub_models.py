"""Training of a decoder's bottom layers as models of their own, another of them at each step.

A decoder of L layers has the sub-models (0, b), (b, 2 b) …: its first b, 2 b … layers with the final norm
and the head. A step draws one (start, end), runs the layers before ``end`` alone, and lets gradients flow
back to ``start``: what is below has none, nor has what is above. Evaluation always runs all layers.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.lm.resizing import blocks_name

HANDLES, WHOLE = "_sub_models", "_every_block"
"""Where a decoder keeps the handles of the hooks and, while it runs, all of its blocks."""
Range = tuple[int, int]


def ranges(depth: int, layers: int) -> list[Range]:
    """The layers that each sub-model trains: ``layers`` of them, at the top what is left."""
    return [(at, min(at + layers, depth)) for at in range(0, depth, layers)]


def install(model: nn.Module, layers: int, until: int, ctx: Context) -> None:
    """Let the model train as sub-models of ``layers`` layers each until that step of the stage of ``ctx``."""
    parent, _, leaf = blocks_name(model).rpartition(".")
    decoder = model.get_submodule(parent)
    every = ranges(len(decoder.get_submodule(leaf)), layers)  # type: ignore[arg-type]

    def drawn() -> Range:
        return every[int(torch.randint(len(every), (), generator=ctx.rng("sub_models")))]

    def shorten(decoder: nn.Module, given: Any) -> None:
        if decoder.training and ctx.step < until:
            decoder.__dict__[WHOLE] = decoder.get_submodule(leaf)
            blocks = list(decoder.get_submodule(leaf).children())
            decoder._modules[leaf] = nn.ModuleList(blocks[: drawn()[1]])

    def restore(decoder: nn.Module, given: Any, out: Any) -> None:
        if WHOLE in decoder.__dict__:
            decoder._modules[leaf] = decoder.__dict__.pop(WHOLE)

    def cut(start: int, block: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if block.training and ctx.step < until and drawn()[0] == start:
            return tuple(map(_detached, given)), {n: _detached(v) for n, v in named.items()}
        return None

    handles = [
        decoder.register_forward_pre_hook(shorten),
        decoder.register_forward_hook(restore, always_call=True),
    ]
    for start, _ in every[1:]:
        block = decoder.get_submodule(leaf).get_submodule(str(start))
        handles.append(block.register_forward_pre_hook(partial(cut, start), with_kwargs=True))
    decoder.__dict__[HANDLES] = handles


def remove(model: nn.Module) -> None:
    """Take the hooks off again."""
    for module in model.modules():
        for handle in module.__dict__.pop(HANDLES, ()):
            handle.remove()


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
