"""Rows of a stage's corpus that are looked at before training, and what linear layers read of them."""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.layers import in_out
from trainwright.lm.losses import most_positions


def rows(model: nn.Module, domains: Sequence[str], samples: int, length: int, ctx: Context) -> list[Tensor]:
    """Training documents of some domains (none named: all) in random order, one behind another, in rows of ``length`` tokens.

    At most ``samples`` rows, each int64 of at most the model's positions. A corpus of fewer tokens gives fewer rows, and a
    shorter last one.
    """
    corpus = open_corpus(ctx.path("data"))
    found = corpus.select("train", domains)
    length = min(length, most_positions(model) or length)
    pieces, have = list[Tensor](), 0
    for i in torch.randperm(len(found), generator=ctx.rng("calibration", at=0)).tolist():
        if have >= samples * length:
            break
        pieces.append(torch.from_numpy(corpus.read(int(found.shard[i]), int(found.offset[i]), int(found.length[i]))))
        have += len(pieces[-1])
    return list(torch.cat(pieces)[:samples * length].split(length))


@torch.no_grad()
def covariances(model: nn.Module, layers: Iterable[str], samples: Sequence[Tensor]) -> dict[str, Tensor]:
    """Of each layer named the mean over samples of X' X [in, in], float32, not centred; X [tokens, in] is what it reads, divided
    by the size of its largest entry. The model is run once over all samples, in evaluation mode."""
    total: dict[str, Tensor] = {}
    hooks = []
    for name in layers:
        layer, (width, _) = model.get_submodule(name), in_out(model.get_submodule(name))
        total[name] = torch.zeros(width, width, device=layer.weight.device)
        hooks.append(layer.register_forward_pre_hook(_adding_to(total[name])))
    training, device = model.training, next(model.parameters()).device
    try:
        for row in samples:
            model.eval()(input_ids=row[None].to(device), use_cache=False)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return {name: one.div_(len(samples)) for name, one in total.items()}


def _adding_to(total: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(layer: nn.Module, given: tuple[Any, ...]) -> None:
        x = given[0].detach().reshape(-1, len(total)).float()
        top = x.max().abs()                                           # of the largest entry, not the entry of largest size
        if top > 0:
            total.addmm_((x / top).T, x / top)
    return hook
