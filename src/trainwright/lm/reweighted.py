"""Linear layers whose weights are a function of the frozen ones and of what is trained.

``Reweighted`` computes y = f(W, trained) x + b. The matrix f is made anew in each pass and again in the
backward pass, so that neither it nor its gradient outlives the layer's own step: what is kept of a pass are
the inputs.
``Reweighting`` is a method that puts such layers in: it folds them (W becomes f, the plain architecture) and
writes and reads what they have learned. A subclass of each::

    class Halves(Reweighted):                                          # f = W * sigmoid(g)
        def __init__(self, layer, settings):
            super().__init__(layer, settings)
            self.g = nn.Parameter(torch.zeros(self.out_features, 1, device=self.weight.device))

        def matrix(self):
            return as_linear_weight(self) * self.g.sigmoid()

    class Halve(Reweighting, Surgery):
        puts = Halves
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainwright.core.context import Context
from trainwright.core.method import ParamMap
from trainwright.lm import deltas
from trainwright.lm.layers import (
    Adapter,
    as_linear_weight,
    compute_dtype,
    freeze,
    installed,
    linear_layers,
    put,
)

FILE = "reweighted.safetensors"


class Reweighted(Adapter):
    """A linear layer that computes with ``matrix()``."""

    def __init__(self, layer: nn.Module, settings: Any) -> None:
        super().__init__(layer)
        self.settings = settings

    def matrix(self) -> Tensor:
        """The weights that it computes with, [out, in], as a differentiable function of what is trained."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        at = x.to(compute_dtype(x))
        if not torch.is_grad_enabled():
            return self.product(at)
        return checkpoint(self.product, at, use_reentrant=False, preserve_rng_state=False)  # type: ignore[no-any-return]

    def product(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.matrix().to(x.dtype), bias)

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The ordinary layer that computes the same."""
        as_linear_weight(self).copy_(self.matrix())
        return self.plain()


@dataclass(frozen=True, kw_only=True)
class Reweighting:
    """A method that puts ``Reweighted`` layers in."""

    layers: str = "all-linear"
    """Which layers: ``all-linear``, ``attention``, ``mlp``, or a glob of module names."""
    puts: ClassVar[type[Reweighted]] = Reweighted

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = linear_layers(model, self.layers)             # before freezing: it may refuse
        freeze(model)
        for name, layer in layers.items():
            put(model, name, self.made(model, name, layer, ctx))
        return None

    def made(self, model: nn.Module, name: str, layer: nn.Module, ctx: Context) -> Reweighted:
        """The layer that takes the place of one."""
        return self.puts(layer, self)

    def mine(self, model: nn.Module) -> dict[str, Any]:
        """The layers that this method has put in, by name."""
        return installed(model, self.puts, self)

    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.folded())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        """What the layers have learned, by name."""
        return {f"{n}.{own}": p.data for n, layer in self.mine(model).items()
                for own, p in layer.named_parameters() if own not in ("weight", "bias")}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)
