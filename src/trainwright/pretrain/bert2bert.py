"""bert2BERT: start a larger model from a small trained one: wider with nearly the same function, then deeper.

"bert2BERT: Towards Reusable Pretrained Language Models" (arXiv 2110.07143). The stage that continues from
the small model (``from.model``) names this method, and leaves a plain checkpoint of the larger size. With
y = W x, W [out, in], and g a map from each entry of the large model to one of the small (the first entries
map to themselves),
    fpi:   U~[:, j] = W[:, g(j)] / C(g(j)),   U[i, :] = U~[g(i), :],      C(k) = entries that map to k;
    aki:   the same, but new rows, i > old size, are those of U~ of the layer above (at the top, its own).
There is one map for the residual stream, one for heads (as a whole, with their group where queries share
keys) and one for the inner units. Biases, norms and embeddings are copied; a head that is tied to the
embeddings leaves its division to the norm in front of it. With fpi and an integer ``width`` every entry is
copied equally often, and the large model computes the same function up to rounding; otherwise the norms
weigh some channels more than others and the function is only nearly the same. aki changes the function and
trains faster. Then the layers are stacked as often as they fit into the new depth, and the top ones once
more to fill the rest; this changes the function. (The paper draws the source of each new entry
independently; here none is drawn twice before all have been drawn once.)

Training has the paper's two stages. In the first, of ``sub_models``, each step draws one of the models made
of the bottom b, 2 b, 3 b … layers (b is ``sub_model_layers``), runs that alone, and trains its top b layers,
the final norm and the head, which they share; the lowest one trains the embeddings too. Then the whole model
trains. A step of the first stage computes (on average) little more than half of the layers, and backward
through b of them. Evaluation, samples and exports are always of the whole model. The paper's saving of 45 %
rests on both (BERT base: 30 % with fpi, 38 % with aki, 45 % with both stages; five epochs of forty are the
first, and with twenty the saving falls to 25 %).

A controller may also request it between two steps, on one rank; the first stage is then counted from there.
What updates remember of a parameter is then mapped like the parameter: averages stay correct; Adam's moments
keep their direction, and steps are up to sqrt(C) smaller for a while. Compare at equal FLOPs, and say whether
those of the small model count (the paper's saving excludes them).

Do not use it where the small model is no good start: other data, or another tokenizer.

Errors: a layout other than Llama's or GPT-2's; a size that is not a whole number; parameters of another
surgery; settings out of range. State: none; which sub-model trains follows from seed and step.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.context import ENDLESS, Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Between, Count
from trainwright.lm.resizing import (
    Dims,
    Maps,
    along,
    become,
    blocks_name,
    dims_of,
    expand,
    groups_of,
    inner_size,
    layer_of,
    resized,
    spaces,
)
from trainwright.lm.schedules import check_parts, steps_of
from trainwright.pretrain import _sub_models

Times = Annotated[float, Between(-100, 100)]
"""How many times as large."""


class Bert2bert(Surgery):
    """Makes a trained model wider and deeper, so that the larger one starts with its knowledge."""

    width: Times = 2.0
    """How many times as wide: residual stream, heads and inner units."""
    depth: Times = 1.0
    """How many times as deep."""
    start: Literal["aki", "fpi"] = "aki"
    """Where new entries come from: the layer above, or their own layer, which keeps the function."""
    sub_models: int | float = 0.125
    """First stage, in which sub-models train: a share of the stage's steps (0.2, 1.0) or a number (20)."""
    sub_model_layers: Count = 3
    """Layers that one sub-model has more than the one below it, and that it trains."""
    neutral: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"sub_models": 0.5, "sub_model_layers": 1}
    off: ClassVar[dict[str, Any] | None] = {"width": 1.0, "depth": 1.0, "sub_models": 0.0}

    def __post_init__(self) -> None:
        check_parts(sub_models=self.sub_models)
        if self.width < 1 or self.depth < 1:
            raise ValueError(f"width and depth must be 1 or more, not {self.width:g} and {self.depth:g}.")

    def claims(self, model: nn.Module) -> set[str]:
        return set(dims_of(model))

    def resized(self, config: Any) -> Any:
        return resized(config, self.width, self.order(config), self.name)

    def order(self, config: Any) -> list[int]:
        """For each layer of the deep model, the layer that it is copied from."""
        old = config.num_hidden_layers
        if round(old * self.depth) != old * self.depth:
            raise UserError(
                f"bert2bert: {old} layers times {self.depth:g} is no whole number; take another depth."
            )
        whole, rest = divmod(round(old * self.depth), old)
        return [*range(old)] * whole + [*range(old - rest, old)]

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap:
        dims, config, parent = dims_of(model), model.config, blocks_name(model)
        sizes = {"residual": config.hidden_size, "heads": groups_of(config), "inner": inner_size(config)}
        drawings = (
            drawn(size, round(size * self.width), ctx.rng(f"bert2bert/{name}", at=0))
            for name, size in sizes.items()
        )
        maps = spaces(config, *drawings)
        old, source, weights = dict(model.named_parameters()), dict[str, Any](), dict[str, Tensor]()
        for name, parameter in old.items():
            wide, copies = expand(parameter.detach(), dims[name], maps), [name]
            if (at := layer_of(name, parent)) is not None:
                above = old.get(f"{parent}.{at[0] + 1}.{at[1]}")
                if self.start == "aki" and above is not None and not is_norm(name):
                    wide = grafted(wide, expand(above.detach(), dims[name], maps), dims[name], maps)
                copies = [
                    f"{parent}.{new}.{at[1]}" for new, came in enumerate(self.order(config)) if came == at[0]
                ]
            for copy in copies:
                weights[copy], source[copy] = wide, (name, partial(expand, dims=dims[name], maps=maps))
        become(model, self.resized(config), weights)
        first = steps_of(self.sub_models, ctx.steps)
        if first and ctx.steps < ENDLESS:                     # a plan asks what the whole model costs
            _sub_models.install(model, self.sub_model_layers, ctx.step + first, ctx)
        return ParamMap(source)

    def fold(self, model: nn.Module) -> None:
        _sub_models.remove(model)


def drawn(old: int, new: int, rng: torch.Generator) -> Tensor:
    """A map: the first entries map to themselves; the rest are drawn, none twice before all others."""
    rounds = [torch.randperm(old, generator=rng) for _ in range(-(-(new - old) // old))]
    return torch.cat([torch.arange(old), *rounds])[:new]


def grafted(own: Tensor, above: Tensor, dims: Dims, maps: Maps) -> Tensor:
    """``own``, with the new entries of the written dimension from ``above``."""
    for d, dim in enumerate(dims):
        if dim in maps:
            own = torch.where(along(repeats(maps[dim]), d, own.ndim).to(own.device), above, own)
    return own


def repeats(index: Tensor) -> Tensor:
    """Entries of a map whose source appears earlier."""
    values, order = index.sort(stable=True)
    again = torch.zeros(len(index), dtype=torch.bool)
    again[order[1:]] = values[1:] == values[:-1]
    return again


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a norm."""
    module = name.split(".")[-2]
    return "norm" in module or module.startswith("ln_")
