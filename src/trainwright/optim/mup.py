"""muP: initial weights and learning rates by width, so that the rate tuned on a narrow model fits a wide one.

"Tensor Programs V: Tuning Large Neural Networks via Zero-Shot Hyperparameter Transfer" (arXiv 2203.03466).
Left out: the rules for SGD, whose step depends on the scale of the gradient; the advice to begin with a head
and queries of zero, by which the model of the base width would no longer be the one that was tuned; and
widths that do not grow in proportion to the hidden size, for which there is no single m. With m = hidden size
/ ``base``, d and d0 the sizes of a head here and in the base model, and the initial weights and the rate lr
those of the base model (transformers draws weights with one deviation at any width),

    parameter                           initial weights        rate
    matrices of the blocks              / sqrt(m)              lr / m
    output head                         / m                    lr / m
    embeddings, biases, gains           as they are            lr
    queries, in addition                sqrt(d0 / d)           sqrt(d0 / d)

This is the paper's table 3, for Adam. Its attention divides by d in place of sqrt(d), which is here in the
queries (where they are normalized, in the gain of that norm); where the head is tied to the embeddings, its
1 / m is in the final norm. The two can stand there since Adam's step does not depend on the scale of the
gradient: a factor c in front of a weight is the same as c in its initial value and in its rate. So no module
changes, and the model is at every moment a plain one, which transformers reads as it is. ``embedding`` and
``residual`` are the factors of the embeddings and of what a block adds to the residual stream, which Power
Scheduler and Granite set to 12 and 0.22, by the same rule.

Name it after the optimizer, whose step it scales, weight decay included; that of ``weight_decay``, named
behind it, stays as it is. The initial weights change in a stage that makes its model; one that goes on with
a model (``from.model``) names it for the rates alone. Parameters that other surgeries bring keep their rate.
Heads need no care where their number grows with the width; where their size does, say ``base_head``.

It is for Adam and its kin alone, whose step does not depend on the scale of the gradient: do not use it with
SGD, which has other rates (in the paper's table 3), or with Muon, which has others again.

Errors: a model whose dimensions are not known (experts, another layout than Llama's or GPT-2's).
State: ``shared``: rates, by parameter; ``param``: rate, where it is not one number (queries, keys and values
in one matrix).
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.core.settings import Count, Positive
from trainwright.core.sharding import local
from trainwright.lm.resizing import LAYOUTS, Dims, plain_dims

READ = ("<residual", "<query", "<inner")
"""Dimensions over which a matrix sums and that grow with the width."""
EMBEDDINGS: tuple[Dims, ...] = (("words", "residual"), ("places", "residual"))


class Scale(NamedTuple):
    """What a parameter's initial value and its rate are multiplied with."""

    start: float = 1.0
    rate: float = 1.0

    def times(self, factor: float) -> Scale:
        """The same with a factor in front of the parameter."""
        return Scale(self.start * factor, self.rate * factor)


class Mup(Surgery, Update):
    """Scales initial weights and learning rates by width, so that one rate fits models of all widths."""

    base: Count = 256
    """Hidden size of the model for which lr and the initial weights are meant."""
    base_head: Count | None = None
    """Size of that model's heads; by default that of this model's."""
    embedding: Positive = 1.0
    """Factor of the embeddings, at any width."""
    residual: Positive = 1.0
    """Factor of what attention and feed-forward add to the residual stream, at any width."""
    neutral: ClassVar[bool] = False
    after: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"base": 4, "base_head": 2, "embedding": 2.0, "residual": 0.5}

    def claims(self, model: nn.Module) -> set[str]:
        scaled = {n for n, scale in self.scales(model).items() if scale.start != 1}
        return scaled | set(self.fused(model))

    def operate(self, model: nn.Module, ctx: Context) -> None:
        if ctx.inputs.get("model"):
            return
        queries = self.fused(model)
        with torch.no_grad():
            for name, scale in self.scales(model).items():
                model.get_parameter(name).mul_(scale.start)
                if name in queries:
                    model.get_parameter(name).mul_(queries[name].to(model.get_parameter(name).device))

    def init(self, model: nn.Module, ctx: Context) -> State:
        rates = {n: scale.rate for n, scale in self.scales(model).items()}
        parts = {}
        for name, row in self.fused(model).items():
            weight = model.get_parameter(name)
            parts[name] = {"rate": row.expand(weight.shape).clone().to(weight.device)}
        return {"shared": {"rates": rates}, "param": parts}

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        rates, parts = state["shared"]["rates"], state["param"]
        out = {n: u * rates.get(n, 1.0) for n, u in updates.items()}
        for name in out.keys() & parts.keys():
            local(out[name]).mul_(local(parts[name]["rate"]))
        return out

    def scales(self, model: nn.Module) -> dict[str, Scale]:
        """The factors of each parameter of the plain model that ``params`` matches."""
        dims = self.dims(model)
        writers = {n.rpartition(".")[0] for n, d in dims.items() if "residual" in d and set(READ) & set(d)}
        normed = any(n.endswith(".q_norm.weight") for n in dims)
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        out = {}
        for name, of in dims.items():
            module = name.rpartition(".")[0]
            scale = self.by_width(of, model.config.hidden_size / self.base)
            if of in EMBEDDINGS:
                scale = scale.times(self.embedding)
            if of == ("<residual",) and tied:
                scale = scale.times(1 / self.embedding)
            if module in writers:
                scale = scale.times(self.residual)
            if module.endswith(".q_norm" if normed else ".q_proj"):
                scale = scale.times(self.attention(model))
            out[name] = scale
        return {n: out[n] for n in match(self.params, out)}

    @staticmethod
    def by_width(of: Dims, m: float) -> Scale:
        """The factors of a parameter with these dimensions, m times as wide as in the base model."""
        if not set(READ) & set(of):
            return Scale()
        if len(of) == 1 or "words" in of:                         # the head, or the norm that stands for it
            return Scale(1 / m, 1 / m)
        return Scale(1 / math.sqrt(m), 1 / m)

    def fused(self, model: nn.Module) -> Tensors:
        """The factors of queries in one matrix with keys and values, to broadcast; empty where all are 1."""
        factor, width = self.attention(model), model.config.hidden_size
        if factor == 1:
            return {}
        row = torch.ones(3 * width)
        row[:width] = factor
        dims = self.dims(model)
        return {n: row for n in match(self.params, dims) if dims[n][-1] == "fused"}

    def attention(self, model: nn.Module) -> float:
        """The factor of the queries."""
        config = model.config
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return math.sqrt((self.base_head or size) / size)

    def dims(self, model: nn.Module) -> dict[str, Dims]:
        """What the dimensions of each parameter count."""
        kind = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        if kind not in LAYOUTS:
            raise UserError(f"mup: which dimensions of a {kind} grow with its width is not known; known are "
                            f"the models {', '.join(LAYOUTS)}.")
        return plain_dims(model)
