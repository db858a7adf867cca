"""PolyCom: the feed-forward layers use a polynomial with trained coefficients in place of GELU or SwiGLU.

"Polynomial Composition Activations: Unleashing the Dynamics of Large Language Models" (arXiv 2411.03884).
Left out: the paper's mixtures of experts, whose layers lie in one tensor a block. A feed-forward layer is
down(act(up(x))): two matrices and no gate. With z [.., hidden] the output of up, elementwise,

    polynorm:  act(z) = w_1 N(z^3) + w_2 N(z^2) + w_3 N(z) + b,    N(u) = u / sqrt(mean(u^2) + 1e-6),
    polyrelu:  act(z) = w_1 relu(z)^3 + w_2 relu(z)^2 + w_3 relu(z) + b.

The mean runs over the hidden dimension, separately for each power: N(z^3), not N(z)^3. It is a mean, as in
the authors' code, where the paper's formula has a plain length. The highest power comes first. Each layer
has its own w, initially 1 / order each, and b, initially 0; ``adamw`` does not decay one-dimensional
parameters, as intended here. Powers are computed in float32, where the authors use the dtype of the run.
The backward pass recomputes them from z, the only tensor that is kept.

A gated feed-forward layer (Llama, Qwen) becomes a plain one with the same number of parameters, 1.5 times
as wide: half of the gate's rows become rows of up and the other half columns of down, so that nothing is
drawn anew. This assumes that all three matrices have the same initial distribution. In GPT-2, whose
feed-forward layer is plain, only the activation changes.

It cannot be folded into the plain architecture. The artifact keeps the matrices, in the places of the gated
ones, in ``backbone/`` and the coefficients in ``adapter/``; later stages, evaluation and ``generate`` load
both, transformers loads neither, and merging refuses the artifact.

Do not use it on a trained model: it changes the function that the model computes.

Errors: a feed-forward layer of another kind (experts, a fused gate, a gate with biases, an activation that
transformers does not know).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.activations import ACT2CLS

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas
from trainwright.lm.layers import LINEAR, block_names, in_out, put, roles

FILE = "polycom.safetensors"
EPS = 1e-6


class Polycom(Surgery):
    """Trains a polynomial as the activation of each feed-forward layer, ungated, with equal parameters."""

    variant: Literal["polynorm", "polyrelu"] = "polynorm"
    """Powers of the input, each divided by its root mean square, or powers of its positive part."""
    order: int = 3
    """Highest power."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if self.order < 1:
            raise ValueError(f"order must be 1 or more, not {self.order}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {
            f"{name}.{part}.weight"
            for name, mlp in feed_forwards(model).items()
            if gated(mlp)
            for part in GATED
        }

    def operate(self, model: nn.Module, ctx: Context) -> None:
        for name, mlp in feed_forwards(model).items():
            leaf = activation_of(mlp)
            act = Polynomial(self, mlp.get_submodule(leaf), next(mlp.parameters()).device)
            if gated(mlp):
                put(model, name, Ungated(mlp, act))
            else:
                put(model, f"{name}.{leaf}", act)

    def activations(self, model: nn.Module) -> dict[str, Polynomial]:
        """The activations that this instance of the method has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, Polynomial) and m.settings == self}

    def fold(self, model: nn.Module) -> None:
        """Removes the polynomials, which leaves a plain model that computes something else."""
        for name, act in self.activations(model).items():
            parent = name.rpartition(".")[0]
            mlp = model.get_submodule(parent)
            if isinstance(mlp, Ungated):
                put(model, parent, mlp.regated())
            else:
                put(model, name, act.replaced[0])

    def coefficients(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{p}": t for n, m in self.activations(model).items() for p, t in m.named_parameters()}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``polycom.safetensors``: per activation ``NAME.weight`` [order], highest power first, and
        ``NAME.bias`` [1]."""
        deltas.write(self.coefficients(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.coefficients(model), folder / FILE)


class Polynomial(nn.Module):
    """The activation of one feed-forward."""

    def __init__(self, settings: Polycom, replaced: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.settings, self.replaced = settings, (replaced,)
        self.weight = nn.Parameter(torch.full((settings.order,), 1 / settings.order, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    def forward(self, z: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            again: Tensor = checkpoint(self.value, z, use_reentrant=False, preserve_rng_state=False)
            return again
        return self.value(z)

    def value(self, z: Tensor) -> Tensor:
        """The polynomial of z [.., hidden], in the dtype of z."""
        base = z.float() if self.settings.variant == "polynorm" else z.float().relu()
        total = self.bias.float()
        for w, power in zip(self.weight.float(), range(self.settings.order, 0, -1), strict=True):
            u = base.pow(power)
            if self.settings.variant == "polynorm":
                u = u * torch.rsqrt(u.square().mean(-1, keepdim=True) + EPS)
            total = total + w * u
        return total.to(z.dtype)

    def extra_repr(self) -> str:
        return f"{self.settings.variant}, order={self.settings.order}"


GATED = ("gate_proj", "up_proj", "down_proj")
"""Layers of a gated feed-forward: down(act(gate(x)) * up(x))."""
ACTIVATIONS = tuple({made[0] if isinstance(made, tuple) else made for made in ACT2CLS.values()})


def feed_forwards(model: nn.Module) -> dict[str, nn.Module]:
    """The feed-forward layer of each block by name: a gated one, or one of two matrices.

    Raises:
        UserError: a block has another one, or several.
    """
    layers = [n for n, m in model.named_modules() if type(m) in LINEAR]
    role = roles(model, layers)
    found = {}
    for block in block_names(model):
        inside = {n.rpartition(".")[0] for n in layers if n.startswith(f"{block}.") and role[n] == "mlp"}
        stacked = any(p.ndim > 2 for p in model.get_submodule(block).parameters())
        name = next(iter(inside), "")
        if len(inside) != 1 or stacked or not _known(model.get_submodule(name)):
            raise UserError(
                f"{block} has no feed-forward of two linear layers and an activation, nor one of "
                f"{', '.join(GATED)} without biases and of an even width."
            )
        found[name] = model.get_submodule(name)
    if not found:
        raise UserError(f"a {type(model).__name__} has no repeated blocks, and so no feed-forward layers.")
    return found


def _known(mlp: nn.Module) -> bool:
    linear = {n: m for n, m in mlp.named_children() if type(m) in LINEAR}
    if len([m for m in mlp.children() if isinstance(m, ACTIVATIONS)]) != 1:
        return False
    if gated(mlp):
        return all(m.bias is None for m in linear.values()) and not in_out(linear["up_proj"])[1] % 2
    shapes = [in_out(m) for m in linear.values()]
    return len(shapes) == 2 and shapes[0] == shapes[1][::-1]


def gated(mlp: nn.Module) -> bool:
    """Whether a feed-forward layer has a gate."""
    return {n for n, m in mlp.named_children() if type(m) in LINEAR} == set(GATED)


def activation_of(mlp: nn.Module) -> str:
    """The name of a feed-forward layer's activation in it."""
    return next(n for n, m in mlp.named_children() if isinstance(m, ACTIVATIONS))


class Ungated(nn.Module):
    """down(act(up(x))), 1.5 times as wide as the gated feed-forward layer whose numbers it takes."""

    @torch.no_grad()
    def __init__(self, mlp: nn.Module, act: nn.Module) -> None:
        super().__init__()
        gate, up, down = (mlp.get_parameter(f"{name}.weight") for name in GATED)
        half = len(gate) // 2
        self.up_proj = linear(torch.cat([up, gate[:half]]))
        self.down_proj = linear(torch.cat([down, gate[half:].T], dim=1))
        self.act_fn = act
        self.emptied = (mlp,)  # in a tuple: no module of the model any more
        for name in GATED:
            setattr(mlp, name, None)
        self.train(mlp.training)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.up_proj(x)))
        return out

    @torch.no_grad()
    def regated(self) -> nn.Module:
        """The gated feed-forward layer again, with the current weights."""
        up, down, (mlp,) = self.up_proj.weight, self.down_proj.weight, self.emptied
        width = len(up) * 2 // 3
        parts = torch.cat([up[width:], down[:, width:].T]), up[:width], down[:, :width]
        for name, weight in zip(GATED, parts, strict=True):
            setattr(mlp, name, linear(weight.clone(memory_format=torch.contiguous_format)))
        return mlp.train(self.training)


def linear(weight: Tensor) -> nn.Linear:
    """A layer without bias with this weight [out, in]."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer
