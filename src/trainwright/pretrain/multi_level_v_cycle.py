"""The multi-level V-cycle: train a large model briefly, a smaller copy of it for long, then the large one.

"A Multi-Level Framework for Accelerating Training Transformer Models" (arXiv 2404.07999). Three stages in a
row, each a run of its own:
    large     trains for a short while from scratch;
    small     from = { model = "large" },
              { use = "multi_level_v_cycle", go = "down" }, trains for long;
    final     from = { model = "large", reference = "small" },
              { use = "multi_level_v_cycle", go = "up" },   trains on.
For more levels go down again from ``small``, and up again. Entries of the small model are groups of
``width`` entries of the large one (residual channels, whole heads with those that share their keys, inner
units: i, i + n, i + 2 n …, with n the number in the small model), and its layers are groups of ``depth``
neighbours.
    down, coalesce:      mean over the group where a dimension is written, sum where it is read; then the
                         mean of the layers;
    up, de-coalesce:     copies where written, equal shares where read; then each layer for all of its group;
        interpolate:     W = (1 - alpha) W_large + alpha W_de-coalesced,   for every parameter.
Coalescing undoes de-coalescing. De-coalescing in width alone keeps the function; copying layers does not,
and neither does coalescing. The interpolation separates the copies, which would otherwise train alike. The
authors double and halve embeddings, for the norm that follows them in BERT; in a model that adds to them
first this would change the function, so here they are averaged and copied like everything that is written,
and a head that is tied to them leaves sums and shares to the norm in front of it.

Its cost is the sum of the FLOPs of the three stages (``flops`` in the numbers of each), including the first
phase of the large model: plot the loss against that.

Do not use it on a large model at initialization, whose groups have nothing in common: give its first stage
some steps.

Errors: layouts other than Llama's and GPT-2's; sizes that do not divide; a reference of another size.
State: none.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery, Tensors
from trainwright.core.stage import Role
from trainwright.lm.resizing import (
    become,
    blocks_name,
    dims_of,
    expand,
    groups_of,
    inner_size,
    layer_of,
    resized,
    shrink,
    spaces,
)


class MultiLevelVCycle(Surgery):
    """Makes a smaller model from the stage's, or brings the smaller one's knowledge back into it."""

    go: Literal["down", "up"] = "down"
    """Down: coalesce the stage's model. Up: de-coalesce ``from.reference`` and interpolate with the model."""
    width: int = 2
    """Entries of the large model per entry of the small one."""
    depth: int = 2
    """Adjacent layers of the large model per layer of the small one."""
    alpha: float = 0.5
    """On the way up, the share of the de-coalesced model."""
    neutral: ClassVar[bool] = False
    roles: ClassVar[dict[str, Role]] = {"reference": Role()}
    example: ClassVar[dict[str, Any]] = {"width": 1}

    def __post_init__(self) -> None:
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width and depth must be 1 or more, not {self.width} and {self.depth}.")
        if not 0 <= self.alpha <= 1:
            raise ValueError(f"alpha must be from 0 to 1, not {self.alpha}.")

    def claims(self, model: nn.Module) -> set[str]:
        return set(dims_of(model))

    def resized(self, config: Any) -> Any:
        return config if self.go == "up" else self.smaller(config)

    def smaller(self, config: Any) -> Any:
        """The config of the coalesced model."""
        for what, size, by in (
            ("layers", config.num_hidden_layers, self.depth),
            ("groups of heads", groups_of(config), self.width),
            ("channels", config.hidden_size, self.width),
            ("inner units", inner_size(config), self.width),
        ):
            if size % by:
                raise UserError(f"multi_level_v_cycle: {size} {what} cannot be coalesced by {by} into one.")
        return resized(config, 1 / self.width, range(0, config.num_hidden_layers, self.depth), self.name)

    def maps(self, config: Any) -> dict[str, Tensor]:
        """For each entry of the large model with this config, its entry in the small one."""
        sizes = config.hidden_size, groups_of(config), inner_size(config)
        return spaces(self.smaller(config), *(torch.arange(n) % (n // self.width) for n in sizes))

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        small = self.smaller(model.config)
        if self.go == "down":
            become(model, small, self.coalesced(model))
            return ParamMap({})  # a new run: nothing is carried over
        other = ctx.frozen.get("reference") or families.load(ctx.path("reference"), self.name)
        if sizes(other) != sizes(families.skeleton(small, self.name)):
            raise UserError(
                "multi_level_v_cycle: from.reference is not of the size that coalescing by width = "
                f"{self.width} and depth = {self.depth} gives."
            )
        with torch.no_grad():
            for name, t in self.decoalesced(other, model).items():
                parameter = model.get_parameter(name)
                parameter.lerp_(t.to(parameter), self.alpha)
        return ParamMap({})

    def coalesced(self, model: nn.Module) -> Tensors:
        """The weights of the small model."""
        dims, maps, parent, out = (
            dims_of(model),
            self.maps(model.config),
            blocks_name(model),
            dict[str, Tensor](),
        )
        for name, parameter in model.named_parameters():
            narrow = shrink(parameter.detach(), dims[name], maps)
            if (at := layer_of(name, parent)) is None:
                out[name] = narrow
            else:
                place = f"{parent}.{at[0] // self.depth}.{at[1]}"
                out[place] = out.get(place, torch.zeros_like(narrow)) + narrow / self.depth
        return out

    def decoalesced(self, small: nn.Module, model: nn.Module) -> Tensors:
        """The weights of the small model at the size of the large one."""
        dims, maps, parent, out = (
            dims_of(model),
            self.maps(model.config),
            blocks_name(model),
            dict[str, Tensor](),
        )
        weights = dict(small.named_parameters())
        for name in dims:
            at = layer_of(name, parent)
            source = name if at is None else f"{parent}.{at[0] // self.depth}.{at[1]}"
            out[name] = expand(weights[source].detach(), dims[name], maps)
        return out


def sizes(model: nn.Module) -> dict[str, torch.Size]:
    return {n: p.shape for n, p in model.named_parameters()}
