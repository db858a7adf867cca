"""AST: train a model of which N of every M neighbouring weights compute, while the choice settles slowly.

"Pruning Large Language Models with Semi-Structural Adaptive Sparse Training" (arXiv 2407.20584). With W [out,
in] of a linear layer, all of it trained, and M the mask of its N largest |W| among every M neighbouring
inputs of an output, taken anew every ``every`` steps,

    y = (M * W) x + b,        dL/dW = dL/d(M * W) in every entry, kept or not,

and Adam with a decay of the weights that do not compute, by a factor that grows over the first ``ramp``
steps,

    u = mean of g + l_t (1 - M) * W,        v <- beta2 v + (1 - beta2) u^2,
    W <- W - lr (u / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay W).

So a weight that was left out early can come back, and later ones cannot. What is exported is M * W, with M as
the model's mask. All other parameters (embeddings, norms, biases) have plain Adam, whose v is of g^2; that of
these layers, as the authors have it, is of u^2 and larger steps follow.

The authors' distillation is an objective of its own (``distill`` with the dense model as its teacher). Left
out are their additional low-rank path (SLoRB) and masks by Wanda's score. Their GPT-2 code inverts an integer
mask bit by bit, so that the decay hits the kept weights, with the other sign; here it is as in the paper and
in their Llama code. Not for a few steps: the mask moves only every ``every`` of them.
Errors: a ``pattern`` that does not fill the rows; another optimizer of the same parameters; ``layers``
matches no linear layer.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.method import Optimizer, ParamMap, State, Surgery, Tensors
from trainwright.core.settings import Count, Part, Rate
from trainwright.lm import sparsity
from trainwright.lm.layers import as_linear_weight, installed, linear_layers, put
from trainwright.lm.reweighted import Reweighted


class AstLinear(Reweighted):
    """A trained linear layer of which the weights that a mask keeps compute."""

    kept: Tensor
    """bool, laid out as ``weight``."""

    def __init__(self, layer: nn.Module, settings: Ast) -> None:
        super().__init__(layer, settings)
        self.register_buffer("kept", torch.ones_like(self.weight, dtype=torch.bool))
        for parameter in self.parameters():
            parameter.requires_grad_()

    def matrix(self) -> Tensor:
        kept = self.kept.T if self.transposed else self.kept
        return Through.apply(as_linear_weight(self), kept)                               # type: ignore[no-any-return]

    def choose(self, weight: Tensor) -> None:
        """Take the mask of these weights, laid out as ``weight``."""
        size = weight.detach().abs()
        kept = sparsity.keep(size.T if self.transposed else size, 0.0, self.settings.pattern, rows=True)
        self.kept.copy_(kept.T if self.transposed else kept)


class Through(torch.autograd.Function):
    """A masked matrix whose gradient is that of the whole one."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, kept: Tensor) -> Tensor:
        return weight * kept

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:                         # type: ignore[override]
        return grad, None


class Ast(Surgery, Optimizer):
    """Surgery: masked layers. Optimizer: Adam, under which the masked weights decay."""

    pattern: str = "2:4"
    """``N:M``: the N largest of every M neighbouring inputs compute."""
    every: Count = 10
    """Steps after which the mask is taken anew."""
    decay: Rate = 6e-5
    """Factor of the masked weights in Adam's numerator, in the end."""
    ramp: Count = 1000
    """Steps over which that factor grows."""
    beta1: Part = 0.9
    """Share of the mean of gradients that is kept at each step."""
    beta2: Part = 0.95
    """Share of the mean of squares that is kept at each step."""
    eps: Rate = 1e-8
    """Added to the root of the mean square, against division by zero."""
    weight_decay: Rate = 0.1
    """Share of all weights that is subtracted at a learning rate of 1; biases and norms do not decay."""
    lr: Rate = 2e-4
    """Peak learning rate; a schedule multiplies it."""
    layers: str = "all-linear"
    """Which layers: ``all-linear``, ``attention``, ``mlp``, or a glob of module names."""
    neutral: ClassVar[bool] = False
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"lr": 1e-3, "every": 2, "ramp": 4}
    expected_failures: ClassVar[dict[str, str]] = {
        "params_limit_it": "the masks act in the forward pass, whoever updates the weights"}

    def __post_init__(self) -> None:
        sparsity.check(0.0, self.pattern)
        if not self.pattern:
            raise ValueError('pattern must be such as "2:4" (weights that compute : neighbours).')

    def claims(self, model: nn.Module) -> set[str]:
        owned = {f"{n}.{own}" for n, layer in linear_layers(model, self.layers).items()
                 for own, _ in layer.named_parameters()}
        return owned | {f"step:{self.params}"}

    def mine(self, model: nn.Module) -> dict[str, AstLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, AstLinear, self)

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        for name, layer in linear_layers(model, self.layers).items():
            made = AstLinear(layer, self)
            made.choose(made.weight)
            put(model, name, made)
        return None

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        kept, out = self.masks(params, ctx), {}
        factor = self.decay * min(1.0, (ctx.step + 1) / self.ramp)
        for name, grad in updates.items():
            p = params[name]
            leaf = state.setdefault("param", {}).setdefault(name, {
                "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p), "step": torch.zeros(())})
            leaf["step"] += 1
            u = leaf["exp_avg"].lerp_(grad, 1 - self.beta1)
            square = grad
            if name in kept:
                square = u = u + factor * p * kept[name].logical_not()
            v = leaf["exp_avg_sq"].mul_(self.beta2).addcmul_(square, square, value=1 - self.beta2)
            first, second = (1 - beta ** float(leaf["step"]) for beta in (self.beta1, self.beta2))
            out[name] = (u / first).div_((v / second).sqrt_().add_(self.eps))
            if p.ndim > 1:
                out[name].add_(p, alpha=self.weight_decay)
        return out

    def masks(self, params: Tensors, ctx: Context) -> Tensors:
        """The mask of each layer's weight, by parameter, sharded as it is."""
        assert ctx.policy is not None
        found = {f"{n}.weight": layer.kept for n, layer in self.mine(ctx.policy).items()}
        return {n: sharding.like(kept, params[n]) for n, kept in found.items() if n in params}

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        assert ctx.policy is not None
        if ctx.step and ctx.step % self.every == 0:
            for name, layer in self.mine(ctx.policy).items():
                layer.choose(sharding.full(params[f"{name}.weight"]))

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            kept = layer.kept.T if layer.transposed else layer.kept
            put(model, name, layer.plain())
            layer.weight.requires_grad_()
            sparsity.prune(model, name, model.get_submodule(name), kept)
