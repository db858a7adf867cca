"""ScaLearn: learn a new task by scaling what adapters of other tasks say, and nothing else.

"ScaLearn: Simple and Highly Parameter-Efficient Task Transfer by Learning to Scale" (arXiv 2310.01217). For a
layer W [out, in] and n source adapters, the LoRA of ``from.sources`` (B_t [out, r_t], A_t [r_t, in], their
scale s_t), with all of them frozen,

    y = W x + sum_t omega_t * (s_t B_t A_t x)

    variant    omega_t of a layer               numbers that are learned
    vector     one for each output [out]        n out for each layer
    uniform    one number                       n for each layer

and with ``shared = true`` one omega for all layers (the paper's ++), which must have as many outputs then.
They start at normal draws around ``total`` / n, of deviation 0.001, and there is no softmax over them: a
source may be turned around, or counted twice. In training they are dropped at random themselves. The task's
own adapter may be among the sources. Exported, W + sum_t diag(omega_t) s_t B_t A_t is a plain matrix.

Small steps never move omega: take a rate of 3e-3 to 1e-2 and no decay of weights. The paper's sources are
bottleneck adapters, whose outputs are scaled alike; LoRA has no non-linearity between its factors. ``total``
and ``dropout`` are not certain. Left out: the head of a new task (``classifier``).

Not where there are many examples of the new task: an adapter of its own says more.

Errors: sources without LoRA, or with other layers or shapes than the model's; shared layers of different
widths. Before its sources are made, a plan counts one that is empty.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.files import expected, read_json
from trainwright.core.method import Surgery
from trainwright.core.settings import Part, Positive
from trainwright.core.stage import MODELS, Role
from trainwright.lm.layers import (
    Adapter,
    Carrier,
    as_linear_weight,
    compute_dtype,
    freeze,
    installed,
    linear_layers,
    put,
)

FILES = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."
NAME = "scalearn"
"""The shared scales, on the model."""
DEVIATION = 1e-3
Sources = list[dict[str, "Source"]]
"""Of each source what it adds to each layer."""


class Source(NamedTuple):
    """What an adapter adds to a layer: up [out, r], scaled, and down [r, in]."""

    up: Tensor
    down: Tensor


class Scalearn(Surgery):
    """Trained scales of frozen adapters."""

    variant: Literal["vector", "uniform"] = "vector"
    """A scale for each output of a layer, or one for all of them."""
    shared: bool = False
    """Whether all layers have the same scales."""
    total: Positive = 2.0
    """What the scales of all sources add up to at the start."""
    dropout: Part = 0.3
    """Share of the scales that is dropped in training."""
    roles: ClassVar[dict[str, Role]] = {"sources": MODELS._replace(needed=True)}
    neutral: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, "all-linear")}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, "all-linear")
        sources = [read(folder, layers) for folder in ctx.inputs.get("sources", [])] or [empty(layers)]
        names = list(sources[0])
        for folder, source in zip(ctx.inputs.get("sources", []), sources, strict=False):
            if odd := sorted(set(source) ^ set(names)):
                raise UserError(f"scalearn: the source {folder.name} has other layers than the first, such "
                                f"as {odd[0]}.")
        freeze(model)
        common = self._common(model, layers, sources, ctx) if self.shared else None
        for name in names:
            parts = [source[name] for source in sources]
            put(model, name, Scaled(layers[name], self, parts, common, ctx.rng(f"{NAME}/{name}", at=0)))

    def _common(self, model: nn.Module, layers: dict[str, nn.Module], sources: Sources,
                ctx: Context) -> Scales:
        """The scales of all layers, on the model."""
        widths = {len(as_linear_weight(layers[name])) for name in sources[0]}
        if self.variant == "vector" and len(widths) > 1:
            raise UserError("scalearn: shared scales need layers of one width, and the sources have layers "
                            f"of {', '.join(map(str, sorted(widths)))} outputs: take variant = "
                            "\"uniform\", or sources with fewer layers.")
        made = Scales(self, len(sources), max(widths), ctx.rng(NAME, at=0))
        model.add_module(NAME, made.to(next(model.parameters()).device))
        return made

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in installed(model, Scaled, self).items():
            weight = as_linear_weight(layer)
            up = torch.cat([u * s[:, None] for u, s in zip(layer.ups(), layer.scales(), strict=True)], 1)
            weight.copy_(torch.addmm(weight.float(), up, layer.down))
            put(model, name, layer.plain())
        if NAME in model._modules:
            delattr(model, NAME)


class Scales(Carrier):
    """omega [n, out] or [n, 1]."""

    def __init__(self, settings: Scalearn, many: int, width: int, draw: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        shape = many, width if settings.variant == "vector" else 1
        noise = DEVIATION * torch.randn(shape, generator=draw)
        self.omega = nn.Parameter(settings.total / many + noise)


class Scaled(Adapter):
    """A frozen linear layer with scaled adapters."""

    down: Tensor
    up: Tensor

    def __init__(self, layer: nn.Module, settings: Scalearn, sources: list[Source], common: Scales | None,
                 draw: torch.Generator) -> None:
        super().__init__(layer)
        self.settings, self.ranks = settings, [s.up.shape[1] for s in sources]
        device = self.weight.device
        self.register_buffer("up", torch.cat([s.up for s in sources], 1).to(device))
        self.register_buffer("down", torch.cat([s.down for s in sources]).to(device))
        if common is None:
            self.own = Scales(settings, len(sources), self.out_features, draw).to(device)
        self.common = (common,)                                 # in a tuple: the model's, not the layer's

    def ups(self) -> list[Tensor]:
        return list(self.up.split(self.ranks, dim=1))

    def scales(self) -> list[Tensor]:
        """Of each source, for each output or all."""
        held = self.own if self.common[0] is None else self.common[0]
        omega = F.dropout(held.omega, self.settings.dropout, self.training)
        return list(omega.expand(-1, self.out_features))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        up = torch.cat([u * s[:, None] for u, s in zip(self.ups(), self.scales(), strict=True)], 1)
        return self.linear(x) + F.linear(F.linear(x.to(kind), self.down.to(kind)), up.to(kind))


def read(folder: Path, layers: dict[str, nn.Module]) -> dict[str, Source]:
    """What the LoRA of an artifact adds, by layer.

    Raises:
        UserError: it has none, or one of another model.
    """
    place = folder / "adapter"
    if not all((place / file).is_file() for file in FILES):
        raise UserError(f"scalearn: the source {folder.name} has no LoRA (adapter/{FILES[0]}): sources are "
                        "stages that were trained with { use = \"lora\" }.")
    with expected(place / FILES[1]):
        told: dict[str, Any] = read_json(place / FILES[1])
        scale = float(told["lora_alpha"]) / (told["r"] ** 0.5 if told.get("use_rslora") else told["r"])
    tensors, found = load_file(place / FILES[0]), {}
    for key in (k for k in tensors if k.endswith(".lora_A.weight")):
        name = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        down, up = tensors[key].float(), scale * tensors[key.replace("lora_A", "lora_B")].float()
        if name not in layers or as_linear_weight(layers[name]).shape != (len(up), down.shape[1]):
            raise UserError(f"scalearn: the source {folder.name} is an adapter of another model: its {name} "
                            f"is [{len(up)}, {down.shape[1]}].")
        found[name] = Source(up, down)
    return found


def empty(layers: dict[str, nn.Module]) -> dict[str, Source]:
    """A source that adds nothing."""
    shapes = {name: as_linear_weight(layer).shape for name, layer in layers.items()}
    return {name: Source(torch.zeros(out, 1), torch.zeros(1, size)) for name, (out, size) in shapes.items()}
