"""Weights on a grid of 2^bits numbers: shared by what quantizes.

A grid belongs to a group of neighbouring weights of one output: a scale s > 0 and a zero z, an integer, so
that a weight is one of s (q - z), where q is an integer from -2^(bits - 1) to 2^(bits - 1) - 1. Symmetric
grids have z = 0 and s = 2 max |w| / (2^bits - 1); asymmetric ones reach from min(w, 0) to max(w, 0). Zero is
always on the grid: what is pruned stays so.

``Quantizer`` has the settings and claims of a method that rounds.
"""
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.errors import UserError
from trainwright.core.settings import LARGEST, Between
from trainwright.families import packed
from trainwright.lm.layers import as_linear_weight, linear_layers

Bits = Annotated[int, Between(2, 8)]
"""Bits of a weight."""
Group = Annotated[int, Between(0, LARGEST)]
"""Neighbouring inputs that share a grid; 0 means all inputs of an output."""


@dataclass(frozen=True, kw_only=True)
class Quantizer:
    """A method that puts weights of linear layers on grids."""

    bits: Bits = 4
    """Bits of a weight, 2 to 8."""
    symmetric: bool = True
    """Whether the grid lies around zero; otherwise it reaches from the smallest weight to the largest."""
    group_size: Group = 0
    """Neighbouring inputs of an output that share a grid; 0 is all of them."""
    layers: str = "all-linear"
    """Which layers: ``all-linear``, ``attention``, ``mlp``, or a glob of module names."""
    neutral: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"bits": 4}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def found(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that are meant, by name.

        Raises:
            UserError: none, or one whose inputs the groups do not fill.
        """
        layers = linear_layers(model, self.layers)
        for name, layer in layers.items():
            check_group(self.group_size, as_linear_weight(layer).shape[1], name)
        return layers

    def grid_of(self, weight: Tensor) -> Grid:
        """The grids that just hold a matrix [out, in], or some neighbouring columns of it."""
        return grid(weight, self.bits, self.symmetric, min(self.group_size, weight.shape[1]))


class Grid(NamedTuple):
    """The grids of a matrix [out, in] in groups along its inputs."""

    scale: Tensor
    """float32 [out, groups]."""
    zero: Tensor
    """float32 [out, groups], whole numbers."""
    bits: int

    def codes(self, weight: Tensor) -> Tensor:
        """The nearest grid point of each weight, int8 [out, in]."""
        groups = weight.float().unflatten(1, (self.scale.shape[1], -1))
        top = 2 ** (self.bits - 1)
        q = (groups / self.scale[..., None] + self.zero[..., None]).round().clamp(-top, top - 1)
        return q.to(torch.int8).flatten(1)

    def values(self, codes: Tensor) -> Tensor:
        """The weights that codes stand for, float32 [out, in]."""
        groups = codes.unflatten(1, (self.scale.shape[1], -1)).float()
        return ((groups - self.zero[..., None]) * self.scale[..., None]).flatten(1)

    def nearest(self, weight: Tensor) -> Tensor:
        """Each weight moved to the grid, float32 [out, in]."""
        return self.values(self.codes(weight))

    def column(self, group: int) -> Grid:
        """The grid of one group, for a part of its columns."""
        return Grid(self.scale[:, group:group + 1], self.zero[:, group:group + 1], self.bits)


def grid(weight: Tensor, bits: int, symmetric: bool, group: int) -> Grid:
    """The grids that just hold all weights of each group.

    Args:
        weight: [out, in].
        group: inputs of a group, which divides their number; 0: all.
    """
    groups = weight.float().unflatten(1, (-1, group or weight.shape[1]))
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    steps = 2**bits - 1
    scale = torch.maximum(-low, high) / (steps / 2) if symmetric else (high - low) / steps
    scale = torch.where(scale > 0, scale, torch.finfo(scale.dtype).eps)
    bottom = -2 ** (bits - 1)
    zero = torch.zeros_like(scale) if symmetric else (bottom - low / scale).round().clamp(bottom, -bottom - 1)
    return Grid(scale, zero, bits)


def passed_through(places: Tensor) -> Tensor:
    """Rounded to whole numbers, with the gradient of what was rounded."""
    return places + (places.round() - places).detach()


def check_group(group: int, inputs: int, name: str) -> None:
    """Raise a UserError where groups of this size do not fill the inputs of the layer called ``name``."""
    if group and inputs % group:
        raise UserError(f"group_size = {group} does not divide the {inputs} inputs of {name}; 0 makes one "
                        "group of them all.")


def remember(model: nn.Module, layer: str, found: Grid, symmetric: bool) -> None:
    """Leave the grids of a layer with the model, so that its weights can be stored in bits."""
    packed.keep(model, layer, packed.Grids(found.scale, None if symmetric else found.zero, found.bits))
