"""bert2BERT: a larger model that starts from a small trained one: wider, with its function or nearly, and deeper by stacking.

"bert2BERT: Towards Reusable Pretrained Language Models" (arXiv 2110.07143). A stage that goes on with the small model
(``from.model``) names it, and leaves a plain checkpoint of the larger size. With y = W x, W [out, in], and g a map from each
entry of the large model to one of the small (the first are themselves),
    fpi:   U~[:, j] = W[:, g(j)] / C(g(j)),   U[i, :] = U~[g(i), :],         C(k) = how many entries come from k;
    aki:   the same, but the rows that are new, i > old size, are those of U~ of the layer above (the topmost keeps its own).
There is one map for the residual stream, one for heads (as wholes, with their group where queries share keys), one for the inner
units. Biases, norms and embeddings are copied; a head that is tied to the embeddings leaves its division to the norm before it.
With fpi and a whole ``width`` every entry is copied equally often, and the large model computes what the small one did, up to
rounding; otherwise the norms weigh some channels more than others, and it does so nearly. aki does not, and trains faster. Then
the layers are stacked, all of them as often as they go into the new depth, the topmost once more for what is left; that keeps no
function. (The paper draws each new entry's source by itself; here none is drawn again before all others were.)

A controller may also ask for it between two steps, on one rank. What updates remember of a parameter is then mapped as the
parameter is: averages stay right; Adam's moments keep their direction, and steps are up to sqrt(C) smaller for a while.
The paper's first phase of two, in which parts of the model train alone, is not part of it. Compare at equal FLOPs, and say
whether the small model's count (the paper's 45 % saving leaves them out). Not where the small model is no good start: other data,
or another tokenizer.

Errors: a layout other than Llama's or GPT-2's; a size that is no whole number; another surgery's parameters. State: none.
"""
from __future__ import annotations

from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery
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


class Bert2bert(Surgery):
    """Makes a trained model wider and deeper, so that the larger one starts with what it knows."""

    width: float = 2.0
    """How many times as wide: residual stream, heads and inner units."""
    depth: float = 1.0
    """How many times as deep."""
    start: Literal["aki", "fpi"] = "aki"
    """Where new entries come from: of the layer above, or of their own, which keeps the function."""
    neutral: ClassVar[bool] = False
    bench: ClassVar[Bench | None] = Bench(
        suite="pretrain", claim="45 % (BERT base) and 47 % (GPT base) fewer FLOPs than from scratch, without those of the small "
        "model, of half the size", stages=(phase("small", 150_000, {"use": "cosine", "warmup": 0.05}, model=NARROW),),
        set={"from.model": "small", "model": None}, versus="training from scratch", search={"adamw.lr": [1e-3, 3e-3, 9e-3]})
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
        """For each layer of the deep model the layer that it is made of."""
        old = config.num_hidden_layers
        if round(old * self.depth) != old * self.depth:
            raise UserError(f"bert2bert: {old} layers times {self.depth:g} is no whole number; take another depth.")
        whole, rest = divmod(round(old * self.depth), old)
        return [*range(old)] * whole + [*range(old - rest, old)]

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap:
        dims, config, parent = dims_of(model), model.config, blocks_name(model)
        maps = spaces(config, *(drawn(size, round(size * self.width), ctx.rng(f"bert2bert/{name}", at=0)) for name, size in (
            ("residual", config.hidden_size), ("heads", groups_of(config)), ("inner", inner_size(config)))))
        old, source, weights = dict(model.named_parameters()), dict[str, tuple[str, Any]](), dict[str, Tensor]()
        for name, parameter in old.items():
            wide, copies = expand(parameter.detach(), dims[name], maps), [name]
            if (at := layer_of(name, parent)) is not None:
                above = old.get(f"{parent}.{at[0] + 1}.{at[1]}")
                if self.start == "aki" and above is not None and not is_norm(name):
                    wide = grafted(wide, expand(above.detach(), dims[name], maps), dims[name], maps)
                copies = [f"{parent}.{new}.{at[1]}" for new, came in enumerate(self.order(config)) if came == at[0]]
            for copy in copies:
                weights[copy], source[copy] = wide, (name, partial(expand, dims=dims[name], maps=maps))
        become(model, self.resized(config), weights)
        return ParamMap(source)


def drawn(old: int, new: int, rng: torch.Generator) -> Tensor:
    """A map: the first are themselves; the rest are drawn, no entry a second time before all others were."""
    rounds = [torch.randperm(old, generator=rng) for _ in range(-(-(new - old) // old))]
    return torch.cat([torch.arange(old), *rounds])[:new]


def grafted(own: Tensor, above: Tensor, dims: Dims, maps: Maps) -> Tensor:
    """``own``, with ``above`` in what is new of the dimension that is written."""
    for d, dim in enumerate(dims):
        if dim in maps:
            own = torch.where(along(repeats(maps[dim]), d, own.ndim).to(own.device), above, own)
    return own


def repeats(index: Tensor) -> Tensor:
    """Entries of a map whose source came before."""
    values, order = index.sort(stable=True)
    again = torch.zeros(len(index), dtype=torch.bool)
    again[order[1:]] = values[1:] == values[:-1]
    return again


def is_norm(name: str) -> bool:
    """Whether a parameter belongs to a norm, which keeps its own entries."""
    module = name.split(".")[-2]
    return "norm" in module or module.startswith("ln_")
