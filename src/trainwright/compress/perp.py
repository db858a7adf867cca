"""PERP: retrain a pruned model by few numbers, and add them to its weights without filling a zero.

"PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs" (arXiv 2312.15230). All of the model is
frozen but biases, norms and adapters. With W [out, in] of a linear layer, M its mask (1 where a weight is
left), A [rank, in] and B [out, rank],

    mask:    y = (W + alpha / rank (B A) * M) x + b,   A uniform in +-1/sqrt(in), B = 0 at the start,
    scale:   y = (W * (B A)) x + b,                    A = B = 1/sqrt(rank) at the start, so that B A = 1,

and the same is folded into W: what was zero stays zero, and the model that is exported is the one that was
trained. M is the mask that the model carries; of one that carries none, the weights that are not zero. The
output head, which nobody prunes, has the plain addition (M = 1) unless it shares the embeddings' weights.

Llama has no biases: there it trains norms and adapters alone. Left out are LoRA-Prune, whose function jumps
as it is merged, and the reconstruction of one layer at a time. Not for a model that nobody has pruned:
``lora`` learns the same and takes less time, since here each pass makes the layer's matrix.
Errors: a ``layers`` that matches no linear layer, or one that has an adapter.
"""
from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core import masks
from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Count
from trainwright.lm.layers import LINEAR, as_linear_weight, linear_layers, put
from trainwright.lm.losses import output_head
from trainwright.lm.reweighted import Reweighted, Reweighting


class PerpLinear(Reweighted):
    """A pruned layer with an addition to, or a factor of, what is left of it."""

    kept: Tensor

    def __init__(self, layer: nn.Module, settings: Perp, kept: Tensor | None, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        self.register_buffer("kept", kept, persistent=False)
        rank, device = settings.rank, self.weight.device
        start = torch.full((rank, self.in_features), rank**-0.5)
        if settings.kind == "mask":
            nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=rng)
        other = torch.full((self.out_features, rank), rank**-0.5 if settings.kind == "scale" else 0.0)
        self.perp_A, self.perp_B = nn.Parameter(start.to(device)), nn.Parameter(other.to(device))

    def matrix(self) -> Tensor:
        weight, product = as_linear_weight(self), self.perp_B @ self.perp_A
        if self.settings.kind == "scale":
            return weight.float() * product
        added = product * (self.settings.alpha / self.settings.rank)
        return weight.float() + (added if self.kept is None else added * self.kept)


class Perp(Reweighting, Surgery):
    """Retraining of a pruned model that leaves its zeros alone."""

    rank: Count = 16
    """Rank of the addition."""
    alpha: float = 32.0
    """Scale of the addition, divided by the rank."""
    kind: Literal["mask", "scale"] = "mask"
    """What adapts the layers: a masked addition, or a factor of each weight."""
    biases: bool = True
    """Whether biases are trained."""
    norms: bool = True
    """Whether norms are trained."""
    head: bool = True
    """Whether the output head has an addition, where its weights are its own."""
    puts: ClassVar[type[Reweighted]] = PerpLinear
    example: ClassVar[dict[str, Any]] = {"rank": 2, "alpha": 4.0}

    def all_layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers that it adapts, the head with them."""
        found, head = linear_layers(model, self.layers), output_head(model)
        uses = sum(p is head.weight for _, p in model.named_parameters(remove_duplicate=False))
        if self.head and self.kind == "mask" and type(head) in LINEAR and uses == 1:
            found |= {n: m for n, m in model.named_modules() if m is head}
        return found

    def vectors(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """Biases and norms, by name."""
        out = {}
        for place, module in model.named_modules():
            for own, p in module.named_parameters(recurse=False):
                norm = p.ndim == 1 and "norm" in type(module).__name__.lower()
                if (norm and self.norms) or (own == "bias" and not norm and self.biases):
                    out[f"{place}.{own}"] = p
        return out

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in self.all_layers(model)} | set(self.vectors(model))

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers, vectors = self.all_layers(model), self.vectors(model)
        super().operate(model, ctx)
        for name in layers.keys() - self.mine(model).keys():
            rng = ctx.rng(f"perp/{name}", at=0)
            put(model, name, PerpLinear(layers[name], self, None, rng))
        for p in vectors.values():
            p.requires_grad_()
        return None

    def made(self, model: nn.Module, name: str, layer: nn.Module, ctx: Context) -> Reweighted:
        kept = masks.of(model).get(f"{name}.weight")
        if kept is None:
            kept = layer.weight.detach() != 0                                            # type: ignore[union-attr]
        turned = as_linear_weight(layer) is not layer.weight
        return PerpLinear(layer, self, kept.T if turned else kept, ctx.rng(f"perp/{name}", at=0))

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return super().learned(model) | {n: p.data for n, p in self.vectors(model).items()}
