"""SSF: scale and shift the outputs of a frozen model's operations by channel, and fold both in afterwards.

"Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning" (arXiv 2210.08823). After each
operation, with an output x of D channels (the last dimension) and a pair of parameters for each place,

    y = gamma * x + beta,   gamma ~ N(1, std^2),   beta ~ N(0, std^2),   both [D], float32,

and everything else is frozen. Places are the linear layers that ``layers`` names (after the bias, before an
activation) and every norm; with ``embedding`` also the token embedding, which corresponds to the patch
embedding of the paper's image models. The model does not start as it was loaded: the paper's std of 0.02
perturbs every place by about 2 %. The output head keeps its weights: the paper trains one only because its
tasks have new classes.

It folds in exactly: W <- diag(gamma) W and b <- gamma b + beta for a linear layer, w <- gamma w and b <-
gamma b + beta for a norm. A shift therefore needs a bias in the exported architecture. Where a linear layer
has none and a setting of the config would give it one (Llama's attention_bias), the export sets it, and other
layers that gain a bias this way get zeros. Where no setting does (Qwen's MLP), this is an error, and shift =
"biased" scales those places only. A norm without a bias (RMSNorm) is only scaled: its shift would be W beta
after the linear layers that follow, which their own shifts express already.

gamma must not decay towards 0; being 1-D it does not under ``adamw``. Backward keeps the output of every
place.

Do not use it to learn much that is new, or with quantized weights.

Errors: ``layers`` matches no linear layer, or one that has an adapter or a tied weight; a shift without a
bias to hold it; an embedding that is tied or no plain table; a norm that is not linear in its weight.
"""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas
from trainwright.lm.layers import (
    LINEAR,
    Adapter,
    Carrier,
    as_linear_weight,
    freeze,
    linear_layers,
    pattern,
    put,
)

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
    neutral: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.std < 0:
            raise ValueError(f"std must be 0 or more, not {self.std}.")

    def claims(self, model: nn.Module) -> set[str]:
        check_biases(model, self.shifted(model))
        found = {**linear_layers(model, self.layers), **self.others(model)}
        return {f"{n}.{p}" for n, m in found.items() for p, _ in m.named_parameters(recurse=False)}

    def others(self, model: nn.Module) -> dict[str, nn.Module]:
        """Norms and the embedding, as far as they are places."""
        return {**(norms(model) if self.norms else {}), **(embedding(model) if self.embedding else {})}

    def shifted(self, model: nn.Module) -> set[str]:
        """The linear layers that get a shift."""
        names = set(linear_layers(model, self.layers))
        return {"all": names, "biased": names - without_bias(model), "none": set()}[self.shift]

    def operate(self, model: nn.Module, ctx: Context) -> None:
        shifted, linear, others = self.shifted(model), linear_layers(model, self.layers), self.others(model)
        check_biases(model, shifted)
        for name, module in others.items():
            if not isinstance(module, nn.Embedding):
                offset(module)  # refuses now what could not be folded later
            if isinstance(module, nn.Embedding) or module._parameters.get("bias") is not None:
                shifted.add(name)
        freeze(model)
        for name in linear:
            put(model, name, ScaleShiftLinear(linear[name]))
        for name in (*linear, *others):
            module, draw = model.get_submodule(name), ctx.rng(f"ssf/{name}", at=0)
            scale, shift = torch.randn(2, channels(module), generator=draw) * self.std
            give(module, 1 + scale, shift if name in shifted else None, self)

    def mine(self, model: nn.Module) -> dict[str, nn.Module]:
        """The places of this method, and not of another of its kind."""
        kinds = (ScaleShiftLinear, ScaleShiftOutput)
        return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and m.ssf_owner == self}

    def trained(self, model: nn.Module) -> dict[str, Tensor]:
        parts = ("ssf_scale", "ssf_shift")
        return {
            f"{n}.{p}": t
            for n, m in self.mine(model).items()
            for p in parts
            if (t := getattr(m, p)) is not None
        }

    def fold(self, model: nn.Module) -> None:
        layers = self.mine(model)
        add_biases(
            model,
            {n for n, m in layers.items() if isinstance(m, ScaleShiftLinear) and m.ssf_shift is not None},
        )
        for name, module in layers.items():
            if isinstance(module, ScaleShiftLinear):
                put(model, name, fold_linear(module))
            else:
                fold_output(module)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``ssf.safetensors``: of each place ``NAME.ssf_scale`` and, where it has one, ``NAME.ssf_shift``."""
        deltas.write(self.trained(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.trained(model), folder / FILE)


# ---- places and what is put on them ------------------------------------------------------------------------


class ScaleShift(torch.autograd.Function):
    """scale * y + shift over the last dimension, in float32, returned in the dtype of y. Backward keeps y."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, shift: Tensor | None) -> Tensor:
        ctx.save_for_backward(y, scale)
        out = y * scale
        return (out if shift is None else out.add_(shift)).to(y.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        y, scale = ctx.saved_tensors
        rows, wide = tuple(range(grad.dim() - 1)), grad.float()
        back = (wide * scale).to(y.dtype) if ctx.needs_input_grad[0] else None
        return back, (wide * y).sum(rows), wide.sum(rows) if ctx.needs_input_grad[2] else None


class ScaleShiftLinear(Adapter):
    """A linear layer whose output is scaled and shifted."""

    def forward(self, x: Tensor) -> Tensor:
        return ScaleShift.apply(self.linear(x), self.ssf_scale, self.ssf_shift)


class ScaleShiftOutput(Carrier):
    """Mixed into the class of a norm or an embedding, whose kind and names of parameters stay."""

    def forward(self, x: Tensor) -> Tensor:
        return ScaleShift.apply(super().forward(x), self.ssf_scale, self.ssf_shift)


def give(module: nn.Module, scale: Tensor, shift: Tensor | None, owner: Any) -> None:
    """Put a scale and a shift on a module, as parameters."""
    module.ssf_owner = owner
    module.ssf_scale = nn.Parameter(scale.to(module.weight.device))
    module.register_parameter(
        "ssf_shift", None if shift is None else nn.Parameter(shift.to(module.weight.device))
    )
    if not isinstance(module, ScaleShiftLinear):
        module.__class__ = type(f"ScaleShift{type(module).__name__}", (ScaleShiftOutput, type(module)), {})


def channels(module: nn.Module) -> int:
    """Of what a linear layer, a norm or an embedding gives."""
    return module.out_features if isinstance(module, ScaleShiftLinear) else module.weight.shape[-1]


def norms(model: nn.Module) -> dict[str, nn.Module]:
    """Norms with a weight for each channel, by module name: classes called norm that have no parts."""
    return {
        n: m
        for n, m in model.named_modules()
        if "norm" in type(m).__name__.lower()
        and not list(m.children())
        and (weight := m._parameters.get("weight")) is not None
        and weight.dim() == 1
    }


@torch.no_grad()
def offset(norm: nn.Module) -> float:
    """c of a norm that gives (weight + c) times what it normalized: 0, or 1 where the weight is kept as the
    distance from 1.

    Raises:
        UserError: it gives something else, so that a scale of its output is no weight of its own.
    """
    size, kept = channels(norm), {n: p.clone() for n, p in norm.named_parameters(recurse=False)}
    x, said = torch.linspace(-1, 2, size, device=norm.weight.device).view(1, 1, size), []
    for value in (0.0, 1.0, 2.0):
        for name, parameter in norm.named_parameters(recurse=False):
            parameter.fill_(value if name == "weight" else 0)
        said.append(norm(x).float())
    for name, parameter in norm.named_parameters(recurse=False):
        parameter.copy_(kept[name])
    once, at_zero = said[1] - said[0], float(said[0].abs().max())
    found = float(said[0].abs().max() / once.abs().max()) if at_zero else 0.0
    if not (
        torch.allclose(said[2] - said[1], once, atol=1e-5)
        and torch.allclose(said[0], found * once, atol=1e-5)
    ):
        raise UserError(
            f"a {type(norm).__name__} is not linear in its weight, so that no scale can be folded into it."
        )
    return round(found, 5)


def embedding(model: nn.Module) -> dict[str, nn.Module]:
    """The token embedding, by its name.

    Raises:
        UserError: it is no plain table, or its weight is another module's too.
    """
    table = model.get_input_embeddings()
    if type(table) is not nn.Embedding:
        raise UserError(f"the embedding is a {type(table).__name__}, no plain table: set embedding = false.")
    if sum(p is table.weight for _, p in model.named_parameters(remove_duplicate=False)) > 1:
        raise UserError(
            "the embedding is tied to the output head, which would be scaled with it: set embedding = false."
        )
    return {next(n for n, m in model.named_modules() if m is table): table}


# ---- biases that the architecture can have -----------------------------------------------------------------


def without_bias(model: nn.Module) -> set[str]:
    """Linear layers that have none."""
    return {
        n
        for n, m in model.named_modules()
        if (type(m) in LINEAR or isinstance(m, Adapter)) and m.bias is None
    }


def options(model: nn.Module) -> dict[str, set[str]]:
    """False settings of the model's config, and the linear layers that each would give a bias."""
    found, bare = {}, without_bias(model)
    for option in (k for k, v in model.config.to_dict().items() if v is False and "bias" in k):
        config = copy.deepcopy(model.config)
        setattr(config, option, True)
        if gained := bare - without_bias(families.skeleton(config, option)):
            found[option] = gained
    return found


def check_biases(model: nn.Module, shifted: set[str]) -> None:
    """Raises UserError where a shift could not be exported: no bias, and no setting that adds one."""
    bare = shifted & without_bias(model)
    lost = bare - set().union(*options(model).values()) if bare and families.is_pretrained(model) else set()
    if lost:
        some = ", ".join(dict.fromkeys(map(pattern, sorted(lost))))
        raise UserError(
            f"{some} have no bias, and no setting of {type(model.config).__name__} gives them one, so that "
            "their shift could not be exported: set shift = \"biased\", or choose other layers with 'layers'."
        )


def add_biases(model: nn.Module, shifted: set[str]) -> None:
    """Have the config give these layers a bias, for now zeros, as in all other layers that gain one by it."""
    bare = shifted & without_bias(model)
    gained = (
        {o: names for o, names in options(model).items() if names & bare}
        if bare and families.is_pretrained(model)
        else {}
    )
    for option in gained:
        setattr(model.config, option, True)
    for layer in (model.get_submodule(n) for n in bare.union(*gained.values())):
        weight = as_linear_weight(layer)
        layer.bias = nn.Parameter(weight.new_zeros(len(weight)), requires_grad=False)


# ---- folding -----------------------------------------------------------------------------------------------


@torch.no_grad()
def fold_linear(layer: ScaleShiftLinear) -> nn.Module:
    """W <- diag(scale) W, b <- scale b + shift; the plain layer."""
    weight = as_linear_weight(layer)
    weight.copy_(weight.float() * layer.ssf_scale[:, None])
    if layer.bias is not None:
        layer.bias.copy_(
            layer.bias.float() * layer.ssf_scale + (0 if layer.ssf_shift is None else layer.ssf_shift)
        )
    return layer.plain()


@torch.no_grad()
def fold_output(module: nn.Module) -> None:
    """w <- scale (w + c) - c, b <- scale b + shift in a norm; w <- scale w + shift in an embedding."""
    scale, shift = module.ssf_scale, module.ssf_shift
    module.__class__ = type(module).__bases__[1]
    del module.ssf_scale, module.ssf_shift, module.ssf_owner
    c = 0.0 if isinstance(module, nn.Embedding) else offset(module)
    module.weight.copy_((module.weight.float() + c) * scale - c)
    if shift is not None and isinstance(module, nn.Embedding):
        module.weight.add_(shift)
    elif shift is not None:
        module.bias.copy_(module.bias.float() * scale + shift)
