"""Neurons, heads and whole blocks as what goes together: shared by what prunes.

Nothing changes its shape: a unit that is removed has zeros in all its weights, and their mask goes with the
model, as that of single weights does (``loram`` cuts such units out while it trains). Of neurons and heads
the share ``sparsity`` goes in each block, of blocks that share of all; at least one stays.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from trainwright.core import masks
from trainwright.core.errors import UserError
from trainwright.core.method import Tensors
from trainwright.lm import sparsity
from trainwright.lm.layers import as_linear_weight, block_names, linear_layers, roles
from trainwright.lm.sparsity import Pruner
from trainwright.lm.units import Part, parts, places, summed

UNITS = {"rows": "mlp", "heads": "attention"}
"""The parts of a block in which units are removed."""


@dataclass(frozen=True, kw_only=True)
class Structured(Pruner):
    """A pruner that can remove whole units."""

    structure: Literal["weights", "rows", "heads", "layers"] = "weights"
    """What goes together: single weights, neurons (rows), key-value heads with the query heads that they
    serve, or whole blocks (layers)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pattern and self.structure != "weights":
            raise ValueError(f"pattern = {self.pattern!r} is about single weights, and structure = "
                             f"{self.structure!r} is not: leave one of them out.")

    def claims(self, model: nn.Module) -> set[str]:
        if self.structure != "layers":
            return super().claims(model)
        layers = linear_layers(model, self.layers)
        return {f"{name}.{own}" for name, layer in layers.items() for own, _ in layer.named_parameters()}

    def without(self, model: nn.Module, layers: Mapping[str, nn.Module], scores: Tensors) -> None:
        """Remove the units with the smallest sums of squared scores ([out, in], one for each weight)."""
        if self.structure == "layers":
            self.without_blocks(model, layers, scores)
        elif not self.without_units(model, layers, scores):
            raise self.nothing()

    def without_units(self, model: nn.Module, layers: Mapping[str, nn.Module], scores: Tensors) -> int:
        """The same of neurons or heads, in the layers that have scores; returns in how many parts."""
        every = [part for block in block_names(model) for part in parts(model, layers, block)]
        role = roles(model, [part.writer for part in every])
        found = [p for p in every if p.writer in scores and role[p.writer] == UNITS[self.structure]]
        for part in found:
            worth = summed(part, {n: scores[n].float().square() for n in (*part.readers, part.writer)})
            stay = max(1, part.units - round(self.sparsity * part.units))
            kept = worth.topk(stay).indices.sort().values
            for name, mask in unit_masks(part, layers, kept).items():
                sparsity.prune(model, name, layers[name], mask)
        return len(found)

    def without_blocks(self, model: nn.Module, layers: Mapping[str, nn.Module], scores: Tensors) -> None:
        """The same of blocks: all their linear layers become zero, so that they add nothing."""
        inside = {b: [n for n in scores if n.startswith(f"{b}.")] for b in block_names(model)}
        worth = {b: float(sum(scores[n].float().square().sum() for n in names))
                 for b, names in inside.items() if names}
        if not worth:
            raise self.nothing()
        gone = sorted(worth, key=worth.__getitem__)[:min(round(self.sparsity * len(worth)), len(worth) - 1)]
        for name in (n for block in gone for n in inside[block]):
            for own, p in layers[name].named_parameters():
                masks.keep(model, f"{name}.{own}", torch.zeros_like(p, dtype=torch.bool))

    def nothing(self) -> UserError:
        return UserError(f"structure = {self.structure!r} finds nothing to remove in layers = "
                         f"{self.layers!r} of this model.")


def unit_masks(part: Part, layers: Mapping[str, nn.Module], kept: Tensor) -> dict[str, Tensor]:
    """The masks ([out, in], true: kept) of a part that keeps these units."""
    out = {}
    for name in (*part.readers, part.writer):
        weight = as_linear_weight(layers[name])
        mask = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
        if name == part.writer:
            mask[:, places(kept, part.units, mask.shape[1])] = True
        else:
            mask[places(kept, part.units, mask.shape[0], part.readers[name])] = True
        out[name] = mask
    return out
