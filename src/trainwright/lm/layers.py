"""The toolkit of adapters: which linear layers a setting means, what an adapter is, how it gets in and out.

- ``linear_layers`` finds the layers that a method's setting ``layers`` means; ``block_names`` and ``roles``
  say where a layer stands, ``in_out`` and ``as_linear_weight`` read ``nn.Linear`` and ``Conv1D`` alike.
- ``Adapter`` is a linear layer with something added; ``Carrier`` is any other module that holds parameters of
  an adapter.
- ``freeze`` freezes the model, ``put`` replaces a module, ``installed`` finds what a method has put in, and
  ``compute_dtype`` is the type in which to compute.
- ``shortest`` and ``pattern`` shorten names of layers for files and messages.

To write an adapter, derive a layer from ``Adapter`` and put it in place of each layer that is meant::

    class Scaled(Adapter):                                             # y = diag(gain) W x + b
        def __init__(self, layer, settings):
            super().__init__(layer)
            self.settings, self.gain = settings, nn.Parameter(torch.ones(self.out_features))

        def forward(self, x):
            return F.linear(x, as_linear_weight(self) * self.gain[:, None], self.bias)

    class Scale(Surgery):
        layers: str = "all-linear"

        def claims(self, model):
            return {f"{name}.weight" for name in linear_layers(model, self.layers)}

        def operate(self, model, ctx):
            layers = linear_layers(model, self.layers)                     # before freezing: it may refuse
            freeze(model)
            for name, layer in layers.items():
                put(model, name, Scaled(layer, self))

        def fold(self, model):
            for name, layer in installed(model, Scaled, self).items():
                as_linear_weight(layer).data.mul_(layer.gain.data[:, None])
                put(model, name, layer.plain())

``lm/deltas.py`` writes and reads what such a layer has learned.
"""
from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from trainwright.core.errors import UserError

LINEAR = (nn.Linear, Conv1D)
"""The classes of linear layers. Exactly these: a subclass may do anything (routers, quantized layers)."""
ROLES = ("all-linear", "attention", "mlp")
"""What ``layers`` may say in place of a glob."""


class Carrier(nn.Module):
    """A module that holds parameters of an adapter. Its ``weight`` and ``bias`` are the model's, frozen."""

    settings: Any
    """The method that has put it in, by which ``installed`` finds it."""


Carried = TypeVar("Carried", bound=Carrier)


class Adapter(Carrier):
    """A linear layer with something added.

    The layer's own parameters are frozen and keep their names, so that globs, checkpoints and tied weights
    mean the same before and after the surgery. Override ``forward``; ``in_features``, ``out_features`` and
    ``transposed`` (whether ``weight`` is [in, out], as ``Conv1D`` keeps it) are known.
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
        """What the layer computes without the addition: [..., in_features] to [..., out_features]."""
        return F.linear(x, as_linear_weight(self), self.bias)

    def plain(self) -> nn.Module:
        """The layer without the addition (an ``nn.Linear`` or ``Conv1D``), on the same parameters."""
        bias = self.bias is not None
        with torch.device("meta"):  # the parameters are put in, none need be made
            layer = (Conv1D(self.out_features, self.in_features) if self.transposed
                     else nn.Linear(self.in_features, self.out_features, bias=bias))
        layer.weight, layer.bias = self.weight, self.bias
        return layer.train(self.training)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}"


def linear_layers(model: nn.Module, layers: str) -> dict[str, nn.Module]:
    """The linear layers (``nn.Linear``, ``Conv1D``) that a setting means, by module name, in model order.

    Args:
        layers: ``all-linear`` (all inside the repeated blocks, so neither embeddings nor the output head),
            ``attention`` (those of them below a module with attention in its name), ``mlp`` (the rest of
            them), or a glob of module names such as ``*.q_proj``.

    Raises:
        UserError: nothing matches; a layer has an adapter already, or shares its weight with another module.
    """
    every = {n: m for n, m in model.named_modules() if type(m) in LINEAR or isinstance(m, Adapter)}
    inside = roles(model, every)
    found = {n: every[n] for n, role in inside.items() if layers in ("all-linear", role)}
    if layers not in ROLES:
        found = {n: m for n, m in every.items() if fnmatchcase(n, layers)}
    if not found:
        raise UserError(
            f"layers = {layers!r} matches no nn.Linear or Conv1D layer; the model has {_list(every)}, "
            f"and {', '.join(ROLES)} mean those of its repeated blocks."
        )
    taken = [n for n, m in found.items() if isinstance(m, Adapter)]
    if taken:
        raise UserError(
            f"layers = {layers!r} matches {_list(taken)}, which another adapter has taken; limit the two "
            "with 'layers'."
        )
    uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    shared = [n for n, m in found.items() if uses[id(m.weight)] > 1]
    if shared:
        raise UserError(
            f"layers = {layers!r} matches {_list(shared)}, which shares its weight with another module (tied "
            "embeddings): to change one would change the other; choose narrower 'layers'."
        )
    return found


def installed(model: nn.Module, kind: type[Carried], settings: Any) -> dict[str, Carried]:
    """The modules of a class that the method with these settings, and no other, has put in, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, kind) and m.settings == settings}


def compute_dtype(x: Tensor) -> torch.dtype:
    """The type in which a layer that reads ``x`` computes: that of autocast where it is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def roles(model: nn.Module, layers: Iterable[str]) -> dict[str, str]:
    """``attention`` or ``mlp`` for each layer or parameter named that lies inside a repeated block."""
    blocks = block_names(model)
    out = {}
    for name in layers:
        block = next((b for b in blocks if name.startswith(f"{b}.")), None)
        if block is not None:
            part = name[len(block):].lower()
            out[name] = "attention" if "attn" in part or "attention" in part else "mlp"
    return out


def block_names(model: nn.Module) -> list[str]:
    """The entries of the outermost module lists: what a language model repeats.

    A list of bare linear layers (heads) repeats nothing, and a model without a list has no blocks.
    """
    lists = {n: m for n, m in model.named_modules() if isinstance(m, (nn.ModuleList, nn.ModuleDict))}
    outer = [n for n in lists if not any(n.startswith(f"{o}.") for o in lists)]
    return [
        f"{n}.{k}".lstrip(".") for n in outer for k, m in lists[n].named_children() if type(m) not in LINEAR
    ]


def in_out(layer: nn.Module) -> tuple[int, int]:
    """Input and output features of a linear layer, an adapter or a ``Conv1D``."""
    if isinstance(layer, Conv1D):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features  # type: ignore[return-value]


def as_linear_weight(layer: nn.Module) -> Tensor:
    """The weight as ``nn.Linear`` keeps it, [out_features, in_features]: a view, which can be written to."""
    transposed = isinstance(layer, Conv1D) or (isinstance(layer, Adapter) and layer.transposed)
    return layer.weight.T if transposed else layer.weight  # type: ignore[union-attr, operator, return-value]


def freeze(model: nn.Module) -> None:
    """Freeze all parameters but those that adapters have added: a second adapter must not stop the first."""
    carriers = [n for n, m in model.named_modules() if isinstance(m, Carrier)]
    added = {
        f"{n}.{p}"
        for n in carriers
        for p, _ in model.get_submodule(n).named_parameters()
        if p not in ("weight", "bias")
    }
    for name, parameter in model.named_parameters():
        if name not in added:
            parameter.requires_grad_(False)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module called ``name``, which is not the model itself."""
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, module)


def shortest(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Sorted names for a file: last parts (``q_proj``) where they mean just these modules, else full."""
    full = set(names)
    last = {n.rpartition(".")[2] for n in full}
    alike = {n for n, _ in model.named_modules() if n.rpartition(".")[2] in last}
    return sorted(last if alike == full else full)


def pattern(name: str) -> str:
    """A name with ``*`` for its numbers: one glob for a layer of every block."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _list(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(map(pattern, names))) or "none"
