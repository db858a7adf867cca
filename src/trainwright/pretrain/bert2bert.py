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

A controller may also request it between two steps, on one rank. What updates remember of a parameter is
then mapped like the parameter: averages stay correct; Adam's moments keep their direction, and steps are
up to sqrt(C) smaller for a while. The first of the paper's two phases, in which parts of the model train
alone, is left out. Compare at equal FLOPs, and say whether those of the small model count (the paper's
saving of 45 % excludes them).

Do not use it where the small model is no good start: other data, or another tokenizer.

Errors: a layout other than Llama's or GPT-2's; a size that is not a whole number; parameters of another
surgery. State: none.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Between
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
from trainwright.pretrain._bench_phases import NARROW, phase

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
    neutral: ClassVar[bool] = False
    bench: ClassVar[Bench | None] = Bench(
        suite="pretrain",
        claim="45 % (BERT base) and 47 % (GPT base) fewer FLOPs than from scratch, without those of the "
        "small model, of half the size",
        stages=(phase("small", 150_000, {"use": "cosine", "warmup": 0.05}, model=NARROW),),
        set={"from.model": "small", "model": None},
        versus="training from scratch",
        search={"adamw.lr": [1e-3, 3e-3, 9e-3]},
    )
    example: ClassVar[dict[str, Any]] = {}
    off: ClassVar[dict[str, Any] | None] = {"width": 1.0, "depth": 1.0}

    def __post_init__(self) -> None:
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
        return ParamMap(source)


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
