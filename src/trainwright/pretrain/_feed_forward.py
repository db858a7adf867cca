"""The feed-forward of each block: found by what it is made of, and changed from a gated one into a plain one and back."""
from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.activations import ACT2CLS

from trainwright.core.errors import UserError
from trainwright.lm.layers import LINEAR, block_names, in_out, roles

GATED = ("gate_proj", "up_proj", "down_proj")
"""Layers of a gated feed-forward: down(act(gate(x)) * up(x))."""
ACTIVATIONS = tuple({made[0] if isinstance(made, tuple) else made for made in ACT2CLS.values()})


def feed_forwards(model: nn.Module) -> dict[str, nn.Module]:
    """The module of each block that has its feed-forward, by name: a gated one, or one of two matrices.

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
            raise UserError(f"{block} has no feed-forward of two linear layers and an activation, nor one of {', '.join(GATED)} "
                            "without biases and of an even width.")
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
    """Whether it is a feed-forward with a gate."""
    return {n for n, m in mlp.named_children() if type(m) in LINEAR} == set(GATED)


def activation_of(mlp: nn.Module) -> str:
    """What a feed-forward calls its activation."""
    return next(n for n, m in mlp.named_children() if isinstance(m, ACTIVATIONS))


class Ungated(nn.Module):
    """down(act(up(x))), 1.5 times as wide as the gated feed-forward that it is made of, and of the same numbers."""

    @torch.no_grad()
    def __init__(self, mlp: nn.Module, act: nn.Module) -> None:
        super().__init__()
        gate, up, down = (mlp.get_parameter(f"{name}.weight") for name in GATED)
        half = len(gate) // 2
        self.up_proj = linear(torch.cat([up, gate[:half]]))
        self.down_proj = linear(torch.cat([down, gate[half:].T], dim=1))
        self.act_fn = act
        self.emptied = (mlp,)                                         # in a tuple: no module of the model any more
        for name in GATED:
            setattr(mlp, name, None)
        self.train(mlp.training)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(self.act_fn(self.up_proj(x)))
        return out

    @torch.no_grad()
    def regated(self) -> nn.Module:
        """The gated feed-forward again, its layers made of the weights of now."""
        up, down, (mlp,) = self.up_proj.weight, self.down_proj.weight, self.emptied
        width = len(up) * 2 // 3
        parts = torch.cat([up[width:], down[:, width:].T]), up[:width], down[:, :width]
        for name, weight in zip(GATED, parts, strict=True):
            setattr(mlp, name, linear(weight.clone(memory_format=torch.contiguous_format)))
        return mlp.train(self.training)


def linear(weight: Tensor) -> nn.Linear:
    """A layer without biases of this weight [out, in]."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer
