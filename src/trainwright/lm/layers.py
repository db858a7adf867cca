"""Linear layers of a model by the part they play, and what every adapter of them shares."""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.core.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""Exactly these: a subclass may do anything (routers, quantized layers)."""
ROLES = ("all-linear", "attention", "mlp")


class Carrier(nn.Module):
    """A module whose own parameters (``weight``, ``bias``) are frozen, and which holds parameters of an adapter beside them."""


class Adapter(Carrier):
    """A linear layer with something added. The layer's own parameters keep their names (``weight``, ``bias``) and are frozen.

    Names that do not move let globs, checkpoints and tied weights mean the same before and after the surgery.
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.in_features, self.out_features = in_out(layer)
        self.transposed = isinstance(layer, Conv1D)
        self.weight, self.bias = layer.weight, layer.bias
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
        self.train(layer.training)

    def linear(self, x: Tensor) -> Tensor:
        """What the layer computed before: [..., in_features] to [..., out_features]."""
        return F.linear(x, as_linear_weight(self), self.bias)

    def plain(self) -> nn.Module:
        """The layer without its addition, on the same parameters."""
        bias = self.bias is not None
        with torch.device("meta"):                                   # the parameters are put in, none need be made
            layer = (Conv1D(self.out_features, self.in_features) if self.transposed
                     else nn.Linear(self.in_features, self.out_features, bias=bias))
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def linear_layers(model: nn.Module, on: str) -> dict[str, nn.Module]:
    """The linear layers (``nn.Linear``, transformers' ``Conv1D``) that ``on`` means, by module name, in model order.

    Args:
        on: ``all-linear`` (all inside the repeated blocks, so neither embeddings nor the output head), ``attention`` (those of
            them below a module that is called so), ``mlp`` (the others), or a glob of module names (``*.q_proj``).

    Raises:
        UserError: nothing matches, a layer carries an adapter already, or its weight is shared with another module.
    """
    every = {n: m for n, m in model.named_modules() if type(m) in LINEAR or isinstance(m, Adapter)}
    inside = roles(model, every)
    found = {n: every[n] for n, role in inside.items() if on in ("all-linear", role)}
    if on not in ROLES:
        found = {n: m for n, m in every.items() if fnmatchcase(n, on)}
    if not found:
        raise UserError(f"on = {on!r} matches no nn.Linear or Conv1D layer; the model has {_list(every)}, "
                        f"and {', '.join(ROLES)} mean those of its repeated blocks.")
    taken = [n for n, m in found.items() if isinstance(m, Adapter)]
    if taken:
        raise UserError(f"on = {on!r} matches {_list(taken)}, which another adapter has taken; limit the two with 'on'.")
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shared = [n for n, m in found.items() if uses[id(m.weight)] > 1]
    if shared:
        raise UserError(f"on = {on!r} matches {_list(shared)}, which shares its weight with another module (tied embeddings): "
                        "to change the one would change the other; choose a narrower 'on'.")
    return found


def roles(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """``attention`` or ``mlp`` for each of the named layers that lies inside a repeated block."""
    blocks = block_names(model)
    out = {}
    for name in layers:
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if block is not None:
            part = name[len(block):].lower()
            out[name] = "attention" if "attn" in part or "attention" in part else "mlp"
    return out


def block_names(model: nn.Module) -> list[str]:
    """The entries of the outermost module lists: what a language model repeats. A list of bare layers (heads) repeats nothing."""
    lists = {n: m for n, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))}
    outer = [n for n in lists if not any(n.startswith(f"{o}.") for o in lists)]
    return [f"{n}.{k}".lstrip(".") for n in outer for k, m in lists[n].named_children() if type(m) not in LINEAR]


def in_out(layer: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear layer."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def as_linear_weight(layer: nn.Module) -> Tensor:
    """The weight as ``nn.Linear`` keeps it, [out_features, in_features]: a view, so that writing to it writes to the layer."""
    transposed = isinstance(layer, Conv1D) or (isinstance(layer, Adapter) and layer.transposed)
    return layer.weight.T if transposed else layer.weight  # type: ignore[union-attr, operator, return-value]


def freeze(model: nn.Module) -> None:
    """Freeze everything but what adapters have added already: the second of two adapters must not stop the first."""
    carriers = [n for n, m in model.named_modules() if isinstance(m, Carrier)]
    added = {f"{n}.{p}" for n in carriers for p, _ in model.get_submodule(n).named_parameters() if p not in ("weight", "bias")}
    for name, parameter in model.named_parameters():
        if name not in added:
            parameter.requires_grad_(False)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module called ``name``."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def shortest(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Names for a file: the last parts (``q_proj``) where they mean exactly these modules, else the full names."""
    full = set(names)
    last = {n.rpartition(".")[2] for n in full}
    alike = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in last}
    return sorted(last if alike == full else full)


def pattern(name: str) -> str:
    """A name with its numbers as ``*``: one glob for a layer of every block."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(map(pattern, names))) or "none"
