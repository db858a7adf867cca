"""SSF: scale and shift what the operations of a frozen model put out, channel by channel; afterwards nothing of it is left.

"Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning" (arXiv 2210.08823). Behind each operation, with x
of D channels (the last dimension) and a pair of its own for each place,

    y = gamma * x + beta,   gamma ~ N(1, std^2),   beta ~ N(0, std^2),   both [D], float32,

and all else is frozen. Places are the linear layers that ``layers`` names (behind the bias, before an activation) and every norm;
with ``embedding`` also the token embedding, which stands where the paper's image models have their patch embedding. The start is
not the model that was loaded: the paper's std of 0.02 perturbs every place by about 2 %. The output head keeps its weights: the
paper trains one only since its tasks have new classes.

It is folded in exactly: W <- diag(gamma) W and b <- gamma b + beta for a linear layer, w <- gamma w and b <- gamma b + beta for a
norm. A shift therefore needs a bias in the exported architecture. Where a linear layer has none and a setting of the config gives
it one (Llama's attention_bias), that is set at export, and layers that get a bias by it but are no place get zeros. Where no
setting does (Qwen's MLP) this is an error, and shift = "biased" leaves those places their scale alone. A norm without bias
(RMSNorm) is scaled only: its shift would be W beta behind the linear layers that follow, which their own shifts express already.

gamma must not decay towards 0; as a 1-D parameter it does not under ``adamw``. Backward keeps the output of every place.
Not for learning much that is new, and not with quantized weights.
Errors: ``layers`` matches no linear layer, one with an adapter, or one whose weight is tied; a shift without a bias to keep it; an
embedding that is tied or no plain table; a norm that is not linear in its weight.
"""
from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.method import Surgery
from trainwright.finetune import _scale_shift as places
from trainwright.finetune._scale_shift import ScaleShiftLinear, ScaleShiftOutput
from trainwright.lm import deltas
from trainwright.lm.layers import freeze, linear_layers, put

FILE = "ssf.safetensors"


class Ssf(Surgery):
    """A trained scale and shift for each channel, behind linear layers and norms."""

    layers: str = "all-linear"
    """Linear layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    norms: bool = True
    """Whether norms, the final one too, are scaled (and shifted where they have a bias)."""
    embedding: bool = False
    """Whether the token embedding is scaled and shifted; it must not be tied to the head."""
    shift: Literal["all", "biased", "none"] = "all"
    """Which linear layers are shifted too: all, those that have a bias, or none."""
    std: float = 0.02
    """Standard deviation of gamma around 1 and of beta around 0 at the start."""
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt", claim="better than full fine-tuning with 0.3 M trained numbers (VTAB-1k: 73.1 % against 65.6 %)",
        scale="the paper adapts a large pretrained network to a thousand examples")
    neutral: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.std < 0:
            raise ValueError(f"std must be 0 or more, not {self.std}.")

    def claims(self, model: nn.Module) -> set[str]:
        places.check_biases(model, self.shifted(model))
        found = {**linear_layers(model, self.layers), **self.others(model)}
        return {f"{n}.{p}" for n, m in found.items() for p, _ in m.named_parameters(recurse=False)}

    def others(self, model: nn.Module) -> dict[str, nn.Module]:
        """Norms and the embedding, as far as they are places."""
        return {**(places.norms(model) if self.norms else {}), **(places.embedding(model) if self.embedding else {})}

    def shifted(self, model: nn.Module) -> set[str]:
        """The linear layers that get a shift."""
        names = set(linear_layers(model, self.layers))
        return {"all": names, "biased": names - places.without_bias(model), "none": set()}[self.shift]

    def operate(self, model: nn.Module, ctx: Context) -> None:
        shifted, linear, others = self.shifted(model), linear_layers(model, self.layers), self.others(model)
        places.check_biases(model, shifted)
        for name, module in others.items():
            if not isinstance(module, nn.Embedding):
                places.offset(module)                                      # refuses now what could not be folded later
            if isinstance(module, nn.Embedding) or module._parameters.get("bias") is not None:
                shifted.add(name)
        freeze(model)
        for name in linear:
            put(model, name, ScaleShiftLinear(linear[name]))
        for name in (*linear, *others):
            module, draw = model.get_submodule(name), ctx.rng(f"ssf/{name}", at=0)
            scale, shift = torch.randn(2, places.channels(module), generator=draw) * self.std
            places.give(module, 1 + scale, shift if name in shifted else None, self)

    def mine(self, model: nn.Module) -> dict[str, nn.Module]:
        """The places of this method, and not of another of its kind."""
        kinds = (ScaleShiftLinear, ScaleShiftOutput)
        return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and m.ssf_owner == self}

    def trained(self, model: nn.Module) -> dict[str, Tensor]:
        parts = ("ssf_scale", "ssf_shift")
        return {f"{n}.{p}": t for n, m in self.mine(model).items() for p in parts if (t := getattr(m, p)) is not None}

    def fold(self, model: nn.Module) -> None:
        layers = self.mine(model)
        places.add_biases(model, {n for n, m in layers.items() if isinstance(m, ScaleShiftLinear) and m.ssf_shift is not None})
        for name, module in layers.items():
            if isinstance(module, ScaleShiftLinear):
                put(model, name, places.fold_linear(module))
            else:
                places.fold_output(module)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``ssf.safetensors``: of each place ``NAME.ssf_scale`` and, where it has one, ``NAME.ssf_shift``."""
        deltas.write(self.trained(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.trained(model), folder / FILE)
