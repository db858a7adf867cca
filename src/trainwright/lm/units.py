"""Units of a block that can be left out whole: neurons, and key-value heads with the query heads that they
serve.

    for part in parts(model, linear_layers(model, "all-linear"), "model.layers.3"):
        kept = sizes(part, layers).topk(part.units // 2).indices.sort().values
        columns = places(kept, part.units, in_features_of_the_writer)     # of part.writer
        rows = places(kept, part.units, out_features, several)            # of each of part.readers
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.lm.layers import as_linear_weight, in_out, roles
from trainwright.lm.pruned import head_size


class Part(NamedTuple):
    """Layers of an attention or feed-forward part that lose the same units: rows of those that read the
    hidden states, columns of the one that writes to them."""

    units: int
    """Neurons, or key-value heads with the query heads that they serve."""
    readers: dict[str, int]
    """Names of the layers that read, and how many layers each one stacks (a gate fused with its layer: 2)."""
    writer: str


def parts(model: nn.Module, layers: Mapping[str, nn.Module], block: str) -> list[Part]:
    """The parts of a block from which units can go. What has another form (attention that makes queries, keys
    and values in one layer, or norms over all heads) is not among them."""
    inside = {n: m for n, m in layers.items() if n.startswith(f"{block}.")}
    role = roles(model, inside)
    found = []
    for kind, form in (("attention", _attention), ("mlp", _mlp)):
        mine = {n: m for n, m in inside.items() if role[n] == kind}
        wide = model.config.get_text_config().hidden_size
        writer = next((n for n in reversed(mine) if in_out(mine[n])[1] == wide), "")
        readers = {n: m for n, m in mine.items() if n != writer}
        if writer and readers and all(in_out(m)[0] == wide for m in readers.values()):
            found.append(form(model, readers, writer, in_out(mine[writer])[0]))
    return [part for part in found if part is not None]


def _mlp(model: nn.Module, readers: dict[str, nn.Module], writer: str, inner: int) -> Part | None:
    rows = {n: in_out(m)[1] for n, m in readers.items()}
    return (
        None
        if any(r % inner for r in rows.values())
        else Part(inner, {n: r // inner for n, r in rows.items()}, writer)
    )


def _attention(model: nn.Module, readers: dict[str, nn.Module], writer: str, inner: int) -> Part | None:
    config = model.config.get_text_config()
    size, heads = head_size(config), config.num_attention_heads
    groups = config.to_dict().get("num_key_value_heads") or heads
    place = writer.rpartition(".")[0]
    others = [
        p
        for n, p in model.get_submodule(place).named_parameters()
        if f"{place}.{n.rpartition('.')[0]}" not in readers and f"{place}.{n.rpartition('.')[0]}" != writer
    ]
    known = sorted(in_out(m)[1] for m in readers.values()) == sorted(
        (heads * size, groups * size, groups * size)
    )
    if not known or inner != heads * size or any(p.numel() > size for p in others):
        return None
    return Part(groups, dict.fromkeys(readers, 1), writer)


def places(kept: Tensor, units: int, size: int, layers: int = 1) -> Tensor:
    """The rows of the units kept, among ``size`` rows of ``layers`` layers stacked one behind another."""
    each = size // layers // units
    one = (kept[:, None] * each + torch.arange(each, device=kept.device)).flatten()
    return (torch.arange(layers, device=kept.device)[:, None] * (size // layers) + one).flatten()


def sizes(part: Part, layers: Mapping[str, nn.Module]) -> Tensor:
    """Sum of the squared weights of each unit."""
    names = (*part.readers, part.writer)
    return summed(part, {n: as_linear_weight(layers[n]).detach().float().square() for n in names})


def summed(part: Part, worth: Mapping[str, Tensor]) -> Tensor:
    """Sum of what the weights of each unit are worth, given that of each layer's weights [out, in]."""
    total = worth[part.writer].sum(0).view(part.units, -1).sum(1)
    for name, several in part.readers.items():
        total = total + worth[name].sum(1).view(several, part.units, -1).sum((0, 2))
    return total


def alive(part: Part, layers: Mapping[str, nn.Module], masks: Mapping[str, Tensor]) -> Tensor:
    """The units of which the masks of a model (``core/masks.py``) leave anything in the layer that writes."""
    layer = layers[part.writer]
    mask = masks.get(f"{part.writer}.weight")
    if mask is None:
        return torch.arange(part.units, device=layer.weight.device)
    inputs = mask.any(1) if isinstance(layer, Conv1D) else mask.any(0)
    return inputs.view(part.units, -1).any(1).nonzero()[:, 0].to(layer.weight.device)
