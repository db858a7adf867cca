"""SaRA: train in place the weights that are nearly zero and so idle, and keep what they learn at a low rank.

"SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation" (arXiv
2409.06633). The authors' weight decay of 0.01 on what is trained is left to the optimizer, and what is
trained is a vector: only with ``{ use = "adamw", weight_decay = 0.01, decay_1d = true }`` does it decay.
Biases, norms and embeddings, of which the authors train the small entries too, stay frozen here: vectors have
no rank to keep low, and a word that is not read has no gradient. Of each weight W [out, in] the entries
smaller in size than a threshold t are trained, everything else is frozen:

    M = (|W| < t),   y = W x + b,
    loss + nuclear ||W * M||_*   (the nuclear norm of one matrix a step, drawn at random),

whose gradient is nuclear (U V')[M], with W * M = U S V' and vanishing terms left out. ``share`` sets t: this
share of all weights of the layers is smaller. After the share ``progress`` of the steps, entries that have
grown to t or beyond are done: they keep their value, and the rest goes on. The entries are a vector of their
own, so that their gradients and the optimizer's states have its size. W has zeros in their places, until they
are done; a layer's dense gradient exists only for a moment.

Name it before clip_gradients and the optimizer: as in the paper, the penalty is part of the
gradient. After the optimizer it would be subtracted beside its step, like a decay. The authors set
the learning rate to 1e-3 exp(-350 t). The vector keeps its length when entries are done.

The paper adapts image models; here it is the linear layers of a language model. The first of the authors' two
optimizers loses the signs of the weights at the start and never applies the penalty to what is trained, and
both skip matrices with a side of 64 or less; here every layer has its turn. Memories of optimizers are kept
at ``progress``, as in the second.

Do not use it where much is to be learned: most weights cannot move. Nor on pruned models, whose zeros would
be trained first.

State: ``param``: done (bool, one an entry); ``shared``: steps.
Errors: settings out of range; no weight below the threshold; ``layers`` matches no linear layer, or one that
is taken or tied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
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
from trainwright.lm.sparse_delta import product, scattered

FILE = "sara.safetensors"
RANK = 1e-6
"""Singular values below this share of the largest have no direction that can be trusted."""
INFINITY = 0x7F800000
"""Its bits; numbers of float32 that are not negative have the order of their bits."""


class Sara(Surgery, Update):
    """Trains the smallest weights in place, with a penalty on the nuclear norm of what they become."""

    share: float = 0.15
    """Share of the layers' weights that is trained: those of smallest size. 0.1 to 0.2 in the paper."""
    threshold: float = 0.0
    """Size below which weights are trained; where it is above 0, share does not count."""
    nuclear: float = 5e-4
    """Factor of the nuclear norm in the loss."""
    progress: float = 0.5
    """Share of the steps after which only weights still below the threshold go on; 1 keeps all to the end."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    params: ClassVar[str] = "*.sara_values"  # type: ignore[misc]
    whole: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"progress": 0.2}

    def __post_init__(self) -> None:
        if not (0 < self.share < 1 and 0 <= self.progress <= 1):
            raise ValueError(
                f"share must be above 0 and below 1, and progress 0 to 1, not {self.share} and "
                f"{self.progress}."
            )
        if self.threshold < 0 or self.nuclear < 0:
            raise ValueError(
                f"threshold and nuclear must be 0 or more, not {self.threshold} and {self.nuclear}."
            )

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        limit = self.threshold or smallest([m.weight for m in layers.values()], self.share)
        if not any((m.weight.abs() < limit).any() for m in layers.values()):
            raise UserError(
                f"sara: no weight of layers = {self.layers!r} is smaller than {limit:.2e}: raise "
                "threshold or share."
            )
        freeze(model)
        for name, layer in layers.items():
            if (layer.weight.abs() < limit).any():
                put(model, name, SaraLinear(layer, self, limit))

    def mine(self, model: nn.Module) -> dict[str, SaraLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, SaraLinear, self)

    def init(self, model: nn.Module, ctx: Context) -> State:
        return {
            "param": {
                f"{n}.sara_values": {
                    "done": torch.zeros(len(m.places), dtype=torch.bool, device=m.weight.device)
                }
                for n, m in self.mine(model).items()
            },
            "shared": {"steps": 0},
        }

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        state["shared"]["steps"] = ctx.step + 1
        out = {
            n: u.masked_fill(state["param"][n]["done"], 0) for n, u in updates.items() if n in state["param"]
        }
        if self.nuclear:
            name = list(out)[int(torch.randint(len(out), (), generator=ctx.rng("sara")))]
            layer, done = ctx.policy.get_submodule(name.rpartition(".")[0]), state["param"][name]["done"]
            out[name] += self.nuclear * polar(layer, params[name]).masked_fill(done, 0)
        return updates | out

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        step, turn = ctx.step + 1, int(self.progress * ctx.steps)
        if state["shared"]["steps"] != step or not turn <= step or not 0 < turn < ctx.steps:
            return                                                    # before the first step, or none is done
        for name, layer in self.mine(ctx.policy).items():
            values, leaf = params[f"{name}.sara_values"], state["param"][f"{name}.sara_values"]
            if step == turn:
                now = sharding.full(values.detach())
                grown = now.abs() >= layer.limit
                layer.keep(params[f"{name}.weight"], now * grown)
                leaf["done"] = sharding.like(grown, values)
            sharding.local(values.detach()).masked_fill_(sharding.local(leaf["done"]), 0)
            ctx.forget(f"{name}.sara_values", leaf["done"])

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            as_linear_weight(layer).copy_(layer.whole())
            put(model, name, layer.plain())

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``sara.safetensors``: trained weights of each layer, ``NAME.sara_values``, at ``NAME.places``."""
        found = {
            f"{n}.sara_values": m.whole().reshape(-1)[m.places.long()] for n, m in self.mine(model).items()
        }
        deltas.write(found | {f"{n}.places": m.places for n, m in self.mine(model).items()}, folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(
            {
                f"{n}.{part}": getattr(m, part)
                for n, m in self.mine(model).items()
                for part in ("sara_values", "places")
            },
            folder / FILE,
        )


class SaraLinear(Adapter):
    """A linear layer that trains its weights below a limit, as a vector; ``weight`` has zeros there."""

    places: Tensor

    @torch.no_grad()
    def __init__(self, layer: nn.Module, settings: Sara, limit: float) -> None:
        super().__init__(layer)
        self.settings, self.limit, weight = settings, limit, as_linear_weight(self)
        small = weight.abs() < limit
        places = small.reshape(-1).nonzero()[:, 0]
        self.register_buffer("places", places.to(torch.int32 if weight.numel() < 2**31 else torch.int64))
        self.sara_values = nn.Parameter(weight.reshape(-1)[places].float())
        weight.masked_fill_(small, 0)

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        return product(x.to(kind), self.sara_values, as_linear_weight(self), self.places, self.bias)

    def whole(self) -> Tensor:
        """The weight that the layer computes with, [out, in], float32."""
        return scattered(as_linear_weight(self), self.sara_values.detach(), self.places, torch.float32)

    def dense(self, values: Tensor) -> Tensor:
        """Numbers at the places, zeros elsewhere: [out, in]."""
        out = values.new_zeros(self.out_features * self.in_features).index_add_(0, self.places, values)
        return out.view(self.out_features, self.in_features)

    def keep(self, weight: Tensor, values: Tensor) -> None:
        """Write numbers into the weight (the parameter, or a rank's part of it) at the zeroed places."""
        dense = self.dense(values).T.contiguous() if self.transposed else self.dense(values)
        sharding.local(weight.detach()).add_(sharding.local(sharding.like(dense.to(weight.dtype), weight)))


def smallest(weights: Sequence[Tensor], share: float) -> float:
    """The size below which ``share`` of all weights lies, found by bisection, without sorting."""
    wanted, low, high = max(1, int(share * sum(w.numel() for w in weights))), 0, INFINITY
    while low < high:
        middle = (low + high) // 2
        if sum(int((w.abs() < _number(middle)).sum()) for w in weights) >= wanted:
            high = middle
        else:
            low = middle + 1
    return _number(low)


def _number(bits: int) -> float:
    return float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))


def polar(layer: SaraLinear, values: Tensor) -> Tensor:
    """The gradient of the nuclear norm of the matrix of ``values``: U V' there, without vanishing terms."""
    U, S, V = torch.linalg.svd(layer.dense(values.detach()), full_matrices=False)
    known = RANK * S[0] < S
    return (U[:, known] @ V[known]).reshape(-1)[layer.places.long()]
