"""IncreLoRA: a LoRA of rank 1 everywhere, whose ranks grow during training where the loss depends on them.

"IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning" (arXiv 2308.12043).
For W [out, in]

    y = W x + dW x,   dW = alpha / (r + 1e-5)  B diag(E) A,   A [., in], B [out, .] ~ N(0, 0.02^2),

where r components are in use: one at the start, with E = 0. The next ``grow`` components wait: their E stays
at 1e-5 while their rows of A and columns of B already learn. With s = sum |dW * dL/dW| / sqrt(in out) of a
layer at a step,

    I <- beta1 I + (1 - beta1) s,   U <- beta2 U + (1 - beta2) |s - I|,   importance = I U.

Between ``begin`` and ``end``, after every ``every`` steps, the most important layers take ``grow`` more
components into use. The budget decides how many layers: ranks rise evenly until they sum to exactly ``rank``
times the number of layers, and then E of whatever still waits is 0 for good. The loss also has
``orthogonality`` times the mean over layers of ||A A' - I||_F and ||B' B - I||_F, taken over the components
of a layer that are in use or waiting.

Name it before clip_gradients and the optimizer: it adds the gradient of that term. A layer reserves ``most``
components from the start (a sharded model cannot gain parameters); unused ones cost only memory. Until
``end`` the dense gradient of a layer is formed briefly, one row of the batch at a time. This differs from the
authors' code: s sums over those rows, so that neither accumulation nor ranks change it; the budget is not
overshot; components are held orthogonal to one another (theirs, in blocks of their own, are only normalized);
and new components have no warm-up of their own (an option there).

Do not use it where all layers matter alike, or for a short stage: scores need some tens of steps.

State: ``shared``, by layer.
Errors: settings out of range; a stage too short to grow in; ``layers`` matches no linear layer, or one that
is taken or tied.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.core.settings import LARGEST, Between
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
from trainwright.lm.schedules import check_parts, steps_of

FILE = "increlora.safetensors"
PARTS = ("increlora_A", "increlora_B", "increlora_E", "ranks")
WAITING = 1e-5
"""The singular value with which a component waits to be taken into use."""
QUIET = 2.0**-20
"""Factor of scores on their way through the chain, so that they do not count in a norm that is clipped."""


class Increlora(Surgery, Update):
    """LoRA whose ranks grow in training, where importance says."""

    rank: int = 8
    """Average rank of the layers in the end."""
    grow: int = 1
    """Components that a layer gets at a time; as many wait in each."""
    most: Annotated[int, Between(0, LARGEST)] = 0
    """The highest rank that a layer may come to; 0: four times the average."""
    alpha: float = 16.0
    """Scale of the addition, divided by the current rank."""
    begin: int | float = 0.1
    """Where ranks begin to grow: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    end: int | float = 0.5
    """Where they have grown: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    every: int | float = 0.02
    """How often they grow: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    beta1: float = 0.85
    """Share of the mean score that is kept at each step."""
    beta2: float = 0.85
    """Share of the mean distance from it that is kept at each step."""
    orthogonality: float = 0.1
    """Factor of the distance from orthonormal components in the loss."""
    layers: str = "all-linear"
    """Layers: all-linear, attention, mlp, or a glob of module names such as *.q_proj."""
    params: ClassVar[str] = "*.increlora_*"  # type: ignore[misc]
    whole: ClassVar[bool] = True
    bench: ClassVar[Bench | None] = Bench(
        suite="adapt",
        claim="better than LoRA and AdaLoRA with as many trained numbers, above all where data are few "
              "(GLUE)",
        drop=("adamw",),
        add=({"use": "increlora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}),
        search={"adamw.lr": [3e-3, 9e-3, 2.7e-2]},
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}),
        versus="LoRA",
    )
    example: ClassVar[dict[str, Any]] = {"rank": 2, "begin": 1, "end": 0.8, "every": 1}

    def __post_init__(self) -> None:
        check_parts(begin=self.begin, end=self.end, every=self.every)
        if (
            min(self.rank, self.grow) < 1
            or 0 < self.most < self.rank
            or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1)
        ):
            raise ValueError(
                "rank and grow must be 1 or more, most 0 or no less than rank, beta1 and beta2 from 0 to "
                "below 1."
            )

    @property
    def room(self) -> int:
        return self.most or 4 * self.rank

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, IncreloraLinear(layer, self, ctx.rng(f"increlora/{name}", at=0)))

    def mine(self, model: nn.Module) -> dict[str, IncreloraLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, IncreloraLinear, self)

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.steps > 1 and self.turn(ctx.steps, ctx)[1] < 1:  # a plan tries one step of any stage
            raise UserError(
                f"increlora: no step of {ctx.steps} is one at which ranks could grow: begin = {self.begin}, "
                f"end = {self.end}, every = {self.every}."
            )
        none = dict.fromkeys(self.mine(model), 0.0)
        return {
            "shared": {
                "ranks": dict.fromkeys(none, 1),
                "sensitivity": none,
                "uncertainty": dict(none),
                "steps": 0,
            }
        }

    def turn(self, step: int, ctx: Context) -> tuple[int, int]:
        """Number of the growth after this step, from 1 (0: there is none), and how many there are in all."""
        begin, every = steps_of(self.begin, ctx.steps), max(1, steps_of(self.every, ctx.steps))
        count = (steps_of(self.end, ctx.steps) - begin) // every
        number, rest = divmod(step - begin, every)
        return (number if rest == 0 and 0 < number <= count else 0), count

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        shared, out = state["shared"], dict(updates)
        shared["steps"] = ctx.step + 1
        scores = {
            n.rpartition(".")[0]: ctx.grads[n]
            for n in updates
            if n.removesuffix(".increlora_score") in shared["ranks"]
        }
        if ctx.step < steps_of(self.end, ctx.steps):
            remember(scores, shared, self.beta1, self.beta2)
        for name in scores:
            out |= orthogonal(
                name, ctx.policy.get_submodule(name), updates, params, self.orthogonality / (2 * len(scores))
            )
        return out

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        shared, layers, (number, count) = state["shared"], self.mine(ctx.policy), self.turn(ctx.step + 1, ctx)
        if number and shared["steps"] == ctx.step + 1:                # not so before the first step
            total = len(layers) + round((self.rank - 1) * len(layers) * number / count)
            shared["ranks"] = allocate(shared, total, self.grow, self.room)
            for name, rank in shared["ranks"].items():
                layers[name].use(rank, waiting=number < count)
            ctx.note("rank", total / len(layers))
        for layer in layers.values():
            layer.scored = shared["steps"] < steps_of(self.end, ctx.steps)

    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.folded())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        return {f"{n}.{part}": getattr(m, part) for n, m in self.mine(model).items() for part in PARTS}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``increlora.safetensors``: A, B, E of each layer and ``ranks``: components in use and waiting."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


class IncreloraLinear(Adapter):
    """A linear layer with room for ``most`` components b e a': the first are in use, the next few wait."""

    ranks: Tensor
    """How many are in use, and how many wait."""

    def __init__(self, layer: nn.Module, settings: Increlora, rng: torch.Generator) -> None:
        super().__init__(layer)
        self.settings, self.scored, device, most = settings, True, self.weight.device, settings.room
        start = torch.full((most,), WAITING)
        start[0] = 0
        self.increlora_A = nn.Parameter(
            torch.empty(most, self.in_features).normal_(0, 0.02, generator=rng).to(device)
        )
        self.increlora_B = nn.Parameter(
            torch.empty(self.out_features, most).normal_(0, 0.02, generator=rng).to(device)
        )
        self.increlora_E = nn.Parameter(start.to(device))
        self.increlora_score = nn.Parameter(torch.zeros(1, device=device))
        self.register_buffer("ranks", torch.zeros(2, dtype=torch.int64, device=device))
        self.use(1, waiting=settings.rank > 1)

    def use(self, rank: int, waiting: bool) -> None:
        """Take so many components into use; whether more are to wait."""
        more = min(self.settings.grow, self.settings.room - rank) if waiting else 0
        self.ranks.copy_(torch.tensor([rank, more]))

    def values(self) -> Tensor:
        """The scaled singular values [most]: 0 where unused, and without a gradient where waiting."""
        (active, waiting), place = self.ranks, torch.arange(len(self.increlora_E), device=self.ranks.device)
        rest = self.increlora_E.detach() * (place < active + waiting)
        return torch.where(place < active, self.increlora_E, rest) * (self.settings.alpha / (active + 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        x, values = x.to(kind), self.values()
        low = F.linear(x, self.increlora_A.to(kind)) * values.to(kind)
        y = self.linear(x) + F.linear(low, self.increlora_B.to(kind))
        if self.scored and torch.is_grad_enabled():
            y = Scored.apply(
                y,
                x.detach(),
                self.increlora_A.detach(),
                self.increlora_B.detach(),
                values.detach(),
                self.increlora_score,
            )
        return y

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The plain layer that computes the same; the weight changes in place."""
        weight = as_linear_weight(self)
        weight.copy_(weight.float() + (self.increlora_B * self.values()) @ self.increlora_A)
        return self.plain()


class Scored(torch.autograd.Function):
    """y as it is; the gradient of ``score`` is sum |dW * dL/dW| / sqrt(entries), summed over the rows of the
    batch.

    Each row has a dL/dW of its own, so that no cut of a step into micro-batches and ranks makes another
    score.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, A: Tensor, B: Tensor, values: Tensor, score: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, A, B, values)
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, A, B, values = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            addition = ((B * values) @ A).abs_()
            score = addition.new_zeros(())
            for g, row in zip(grad, x, strict=True) if grad.ndim > 2 else [(grad, x)]:
                dense = g.reshape(-1, g.shape[-1]).T @ row.reshape(-1, row.shape[-1])
                score += (dense.float().abs_() * addition).sum() * (QUIET / math.sqrt(addition.numel()))
        return grad, None, None, None, None, score.view(1)


def remember(scores: dict[str, Tensor], shared: State, beta1: float, beta2: float) -> None:
    """Move each layer's sensitivity and uncertainty by its score of this step."""
    now = (torch.cat(list(scores.values())) / QUIET).tolist()  # one wait for the device, not one a layer
    for name, score in zip(scores, now, strict=True):
        known = shared["sensitivity"][name] = beta1 * shared["sensitivity"][name] + (1 - beta1) * score
        shared["uncertainty"][name] = beta2 * shared["uncertainty"][name] + (1 - beta2) * abs(score - known)


def orthogonal(
    name: str, layer: IncreloraLinear, updates: Tensors, params: Tensors, factor: float
) -> Tensors:
    """A layer's gradients plus that of the orthogonality of its components; 0 for the score."""
    A, B, used = f"{name}.increlora_A", f"{name}.increlora_B", int(layer.ranks.sum())
    out = {A: updates[A].clone(), B: updates[B].clone()}
    out[A][:used].add_(orthonormal(params[A][:used]), alpha=factor)
    out[B][:, :used].add_(orthonormal(params[B][:, :used].T).T, alpha=factor)
    return out | {f"{name}.increlora_score": torch.zeros_like(updates[f"{name}.increlora_score"])}


def orthonormal(matrix: Tensor) -> Tensor:
    """The gradient of ||M M' - I||_F, whose rows are to be orthonormal."""
    off = matrix @ matrix.T - torch.eye(len(matrix), device=matrix.device)
    return 2 * off @ matrix / off.norm().clamp(min=1e-12)


def allocate(shared: State, total: int, grow: int, most: int) -> dict[str, int]:
    """Ranks that sum to ``total``: the most important layers get ``grow`` more, one after another, until none
    are left to give.

    None gets beyond ``most``; if there are more to give than layers, it begins anew with the first.
    """
    out, left = dict(shared["ranks"]), total - sum(shared["ranks"].values())
    order = sorted(out, key=lambda name: -shared["sensitivity"][name] * shared["uncertainty"][name])
    while left > 0 and any(out[name] < most for name in order):
        for name in order:
            more = min(grow, most - out[name], left)
            out[name] += more
            left -= more
    return out
