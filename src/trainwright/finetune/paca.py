"""PaCA: train a few random input columns of each linear layer in place, without a second path beside the layer.

"PaCA: Partial Connection Adaptation for Efficient Fine-Tuning" (arXiv 2503.01905). For a layer W [out, in] draw ``rank`` columns
S once, uniformly; all else is frozen. With P [out, rank] trained, s = alpha / rank, and P = W[:, S] / s at the start,

    V = W with s P as its columns S,    y = V x + b,    dL/dx = V' dL/dy,    dL/dP = s (dL/dy) x[S]'

so that the gradient is the dense one on those columns, and the forward pass is one product. Backward keeps x[S] (rank numbers a
token) and the weights themselves: for each product s P is put into W, and the old columns back. Only where autocast gives the
activations another dtype V is a passing copy, as it makes one of any frozen weight. ``fold`` writes s P into W for good; the
other columns stay as they were, to the bit. P is float32. Weight decay pulls the columns to zero, not back to W. Under Adam a
step moves them by about s times the learning rate; alpha = rank is plain training of the columns.

The released code computes some passes with columns of an earlier step, and takes inputs of three dimensions only. Here every
pass has the columns of now, for any number of dimensions.

Not for generating much text under autocast or compiled: each pass then copies the weights, which counts where it has few tokens.
Errors: a rank above the inputs of a layer; ``layers`` matches no linear layer, one that has an adapter, or one whose weight is tied.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.finetune._columns import Columns, copied
from trainwright.lm import deltas
from trainwright.lm.layers import Adapter, as_linear_weight, freeze, in_out, linear_layers, put

FILE = "paca.safetensors"


class Paca(Surgery):
    """Partial connection adaptation of the linear layers that ``layers`` names."""

    rank: int = 8
    """Input columns of each layer that are trained."""
    alpha: float = 16.0
    """Scale of the trained columns, divided by the rank: how far a step of the optimizer moves them."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    bench: ClassVar[Bench | None] = Bench(
        suite="sft", claim="22 % less time and 16 % less memory than LoRA of the same rank, at a comparable accuracy",
        metric="seconds_per_step", add=({"use": "paca", "rank": 8},), set={"precision": "bf16-true"},
        baseline=({"use": "lora", "rank": 8},), baseline_set={"precision": "bf16-true"}, versus="LoRA")
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank must be 1 or more, not {self.rank}.")
        if self.alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {self.alpha}.")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        narrow = next((n for n, m in layers.items() if in_out(m)[0] < self.rank), None)
        if narrow is not None:
            raise UserError(f"paca: rank = {self.rank} is more than the {in_out(layers[narrow])[0]} inputs of {narrow}; "
                            "choose a lower rank, or a narrower 'layers'.")
        freeze(model)
        for name, layer in layers.items():
            put(model, name, PacaLinear(layer, self, ctx.rng(f"paca/{name}", at=0)))

    def mine(self, model: nn.Module) -> dict[str, PacaLinear]:
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, PacaLinear) and m.settings == self}

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            weight = as_linear_weight(layer)
            weight.copy_(copied(weight, layer.columns, layer.index, self.scale, weight.dtype))
            put(model, name, layer.plain())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in ("columns", "index")}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``paca.safetensors``: of each layer ``NAME.columns`` [out, rank] (P, still to be scaled) and ``NAME.index`` [rank]."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


class PacaLinear(Adapter):
    """A linear layer of which one ``Paca`` trains some columns."""

    index: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Paca, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings = settings
        index = torch.randperm(self.in_features, generator=rng)[:settings.rank].sort().values
        self.register_buffer("index", index.to(self.weight.device))
        start = as_linear_weight(self).index_select(1, self.index).float()
        self.columns = nn.Parameter(start.div_(settings.scale).contiguous())

    def forward(self, x: Tensor) -> Tensor:
        kind = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else x.dtype
        return Columns.apply(x.to(kind), self.columns, as_linear_weight(self), self.index, self.bias, self.settings.scale)
