"""IncreLoRA: a LoRA of rank 1 everywhere, whose ranks grow during training where the loss depends on them.

"IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning" (arXiv 2308.12043).
Left out is a learning rate that new components have of their own (a warm-up and a decay, an option there):
the schedule of the stage is that of all, as for every other method. For W [out, in]

    y = W x + dW x,   dW = alpha / (r + 1e-5)  B diag(E) A,   A [., in], B [out, .] ~ N(0, 0.02^2),

where r components are in use: one at the start, with E = 0. The next ``grow`` components wait: their E stays
at 1e-5 while their rows of A and columns of B already learn. With s = sum |dW * dL/dW| / sqrt(in out) of a
layer at a step,

    I <- beta1 I + (1 - beta1) s,   U <- beta2 U + (1 - beta2) |s - I|,   importance = I U.

Between ``begin`` and ``end``, after every ``every`` steps, the most important layers take ``grow`` more
components into use, and as many new ones wait. The budget decides how many layers: ranks rise evenly until
they sum to exactly ``rank`` times the number of layers, before the last step at the latest. Then what still
waits leaves dW for good and is frozen. The loss also has ``orthogonality`` times the mean over layers of
||A A' - I||_F and ||B' B - I||_F, taken over the components of a layer that are in use or waiting.

A layer has no component that is neither in use nor waiting. It trains as much as a LoRA of rank 1 + ``grow``
at the start and as one of its own rank in the end, plus one E for each component in use, and the file that it
leaves is as large. Each component is a parameter of its own from the moment it is made, and each E from the
moment it is taken into use, so that an optimizer begins anew with it (an Adam of some age would take a first
step of less than the learning rate). Where the model is sharded every rank has all of what was added since
the stage began.

Name it before clip_gradients and the optimizer: it adds the gradient of that term. As long as ranks grow the
dense gradient of a layer is formed briefly, one row of the batch at a time. This differs from the authors'
code: s sums over those rows, so that neither accumulation nor ranks change it; the budget is not overshot;
and components are held orthogonal to one another (theirs, in blocks of their own, are only normalized).

Do not use it where all layers matter alike, or for a short stage: scores need some tens of steps.

State: ``shared``, by layer.
Errors: settings out of range; a stage too short to grow in; ``layers`` matches no linear layer, or one that
is taken or tied.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Command, Controller, Operate, ParamMap, State, Surgery, Tensors, Update
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
from trainwright.lm.stacked import joined, orthogonal

FILE = "increlora.safetensors"
PARTS = ("increlora_A", "increlora_B", "increlora_E")
WAITING = 1e-5
"""The singular value with which a component waits to be taken into use."""
QUIET = 2.0**-20
"""Factor of scores on their way through the chain, so that they do not count in a norm that is clipped."""


class Increlora(Surgery, Controller, Update):
    """Surgery: adds components. Controller: asks for more. Update: scores layers, keeps components apart."""

    rank: int = 8
    """Average rank of the layers in the end."""
    grow: int = 1
    """Components that a layer gets at a time; as many wait in each."""
    most: Annotated[int, Between(0, LARGEST)] = 0
    """The highest rank that a layer may come to; 0: any."""
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
    grown: tuple[str, ...] = ()
    """The layers of the components that one growth takes into use: what the method itself notes in the
    journal of a run. Empty in a recipe."""
    params: ClassVar[str] = "*.increlora_*"  # type: ignore[misc]
    whole: ClassVar[bool] = True
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
        return self.most or LARGEST

    @property
    def base(self) -> Increlora:
        """The method as the recipe names it, by which its layers know it."""
        return dataclasses.replace(self, grown=())

    def claims(self, model: nn.Module) -> set[str]:
        return {f"{name}.weight" for name in linear_layers(model, self.layers)}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        if self.grown:
            return self.grow_up(model, ctx)
        layers = linear_layers(model, self.layers)
        freeze(model)
        for name, layer in layers.items():
            put(model, name, IncreloraLinear(layer, self))
            self.reserve(model, name, 1, ctx)
            self.reserve(model, name, 1 + (self.grow if self.rank > 1 else 0), ctx)
            self.mine(model)[name].promote(1, 0.0)
            if self.rank == 1:
                self.mine(model)[name].close()
        return None

    def grow_up(self, model: nn.Module, ctx: Context) -> ParamMap:
        """Take the components of one growth into use, and let others wait in their place or, after the last
        growth, none."""
        layers, more = self.base.mine(model), Counter(self.grown)
        if unknown := more.keys() - layers.keys():
            raise UserError(
                f"increlora: grown names {min(unknown)}, which is no layer of it; a recipe leaves grown out."
            )
        kept, left = {n for n, _ in model.named_parameters()}, self.rank * len(layers)
        left -= sum(layer.active for layer in layers.values()) + len(self.grown)
        for name, layer in layers.items():
            rank = layer.active + more[name]
            self.reserve(model, name, rank + (min(self.grow, self.room - rank) if left else 0), ctx)
            if more[name]:
                layer.promote(more[name], WAITING)
            if not left:
                kept -= {f"{name}.{part}" for part in layer.close()}
        return ParamMap({n: (n, lambda t: t) for n in kept})

    def reserve(self, model: nn.Module, name: str, components: int, ctx: Context) -> None:
        """Let a layer have so many components, in use and waiting."""
        layer = self.base.mine(model)[name]
        if components > layer.made:
            layer.add(components - layer.made, ctx.rng(f"increlora/{name}/{layer.made}", at=0))

    def mine(self, model: nn.Module) -> dict[str, IncreloraLinear]:
        """The layers that this method has put in, by name."""
        return installed(model, IncreloraLinear, self)

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.steps > 1 and self.turn(ctx.steps, ctx.steps)[1] < 1:  # a plan tries one step of any stage
            raise UserError(
                f"increlora: no step of {ctx.steps} is one at which ranks could grow: begin = {self.begin}, "
                f"end = {self.end}, every = {self.every}."
            )
        none = dict.fromkeys(self.mine(model), 0.0)
        return {"shared": {"ranks": dict.fromkeys(none, 1), "sensitivity": none, "uncertainty": dict(none)}}

    def turn(self, step: int, steps: int) -> tuple[int, int]:
        """Number of the growth after this step, from 1 (0: there is none), and how many there are in all."""
        begin, every = steps_of(self.begin, steps), max(1, steps_of(self.every, steps))
        count = (min(steps_of(self.end, steps), steps - 1) - begin) // every
        number, rest = divmod(step - begin, every)
        return (number if rest == 0 and 0 < number <= count else 0), count

    def tick(self, view: View, state: State) -> Iterable[Command]:
        number, count = self.turn(view.step, view.steps)
        if number:
            shared, layers = state["shared"], len(state["shared"]["ranks"])
            total = layers + round((self.rank - 1) * layers * number / count)
            more = Counter(allocate(shared, total, self.grow, self.room))
            more.subtract(shared["ranks"])
            if more.total():
                yield Operate(dataclasses.replace(self, grown=tuple(more.elements())))

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        shared, layers, out = state["shared"], self.mine(ctx.policy), dict(updates)
        shared["ranks"] = {name: layer.active for name, layer in layers.items()}
        ctx.note("rank", sum(shared["ranks"].values()) / len(layers))
        scores = {n: ctx.grads[f"{n}.increlora_score"] for n in layers if f"{n}.increlora_score" in updates}
        if scores:
            remember(scores, shared, self.beta1, self.beta2)
            out |= {f"{n}.increlora_score": torch.zeros_like(score) for n, score in scores.items()}
        live = {n: layer for n, layer in layers.items() if f"{n}.increlora_A.0" in updates}
        for name, layer in live.items():
            for part, dim in (("increlora_A", 0), ("increlora_B", 1)):
                blocks = {f"{name}.{part}.{i}": params[f"{name}.{part}.{i}"] for i in range(layer.blocks)}
                for block, gradient in orthogonal(blocks, layer.used, dim).items():
                    out[block] = updates[block].add(gradient, alpha=self.orthogonality / (2 * len(live)))
        return out

    def fold(self, model: nn.Module) -> None:
        for name, layer in self.mine(model).items():
            put(model, name, layer.folded())

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        """A, B and E by layer, of the components in use and, as long as there are any, of those that wait."""
        return {f"{n}.{part}": t for n, m in self.mine(model).items() for part, t in m.learned().items()}

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``increlora.safetensors``: A, B, E of each layer."""
        if not self.grown:
            deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        found = load_file(folder / FILE) if (folder / FILE).is_file() else {}
        for name, layer in self.mine(model).items():
            if all(f"{name}.{part}" in found for part in PARTS):
                layer.fit(found[f"{name}.increlora_A"], found[f"{name}.increlora_E"])
        deltas.read(self.learned(model), folder / FILE)


class IncreloraLinear(Adapter):
    """A linear layer with components b e a': the first are in use, the others wait or, in the end, are not
    needed."""

    def __init__(self, layer: nn.Module, settings: Increlora) -> None:
        super().__init__(layer)
        self.settings, self.scored, self.closed = settings, True, False
        self.increlora_A, self.increlora_B = nn.ParameterList(), nn.ParameterList()
        self.increlora_E = nn.ParameterList()
        self.increlora_score = nn.Parameter(torch.zeros(1, device=self.weight.device))

    @property
    def made(self) -> int:
        """Components that there are."""
        return sum(len(A) for A in self.increlora_A)

    @property
    def active(self) -> int:
        """Components in use."""
        return sum(len(E) for E in self.increlora_E)

    @property
    def used(self) -> int:
        """Components in use and waiting."""
        return self.active if self.closed else self.made

    @property
    def blocks(self) -> int:
        """Parameters, of A as of B, that hold the components in use and waiting."""
        sizes = [len(A) for A in self.increlora_A]
        return next(i for i in range(len(sizes) + 1) if sum(sizes[:i]) >= self.used)

    def add(self, components: int, rng: torch.Generator) -> None:
        """Components that wait."""
        A = torch.empty(components, self.in_features).normal_(0, 0.02, generator=rng)
        B = torch.empty(self.out_features, components).normal_(0, 0.02, generator=rng)
        self.increlora_A.append(nn.Parameter(A.to(self.weight.device)))
        self.increlora_B.append(nn.Parameter(B.to(self.weight.device)))

    def promote(self, components: int, value: float) -> None:
        """Take components that wait into use, at this singular value."""
        self.increlora_E.append(nn.Parameter(torch.full((components,), value, device=self.weight.device)))

    def close(self) -> list[str]:
        """No more components come into use: what is no longer needed is frozen. Returns its names."""
        self.closed, self.scored = True, False
        rest = range(self.blocks, len(self.increlora_A))
        idle = ["increlora_score", *(f"increlora_{part}.{i}" for i in rest for part in "AB")]
        for name in idle:
            self.get_parameter(name).requires_grad_(False)
        return idle

    def fit(self, A: Tensor, E: Tensor) -> None:
        """Make room for what was learned: as many components as ``A`` has rows, those of ``E`` in use."""
        where = self.weight.device
        sizes = (len(A), self.in_features), (self.out_features, len(A)), (len(E),)
        self.increlora_A, self.increlora_B, self.increlora_E = (
            nn.ParameterList([nn.Parameter(torch.zeros(size, device=where))]) for size in sizes
        )
        if len(A) == len(E):
            self.close()

    def learned(self) -> Tensors:
        """A, B and E of the components in use and waiting; in place where each is one parameter."""
        tensors = *self.factors(), joined([*self.increlora_E], 0)
        return {part: t.detach() for part, t in zip(PARTS, tensors, strict=True)}

    def values(self) -> Tensor:
        """The scaled singular values of the components in use and waiting; the latter have no gradient."""
        active, E = self.active, joined([*self.increlora_E], 0)
        if self.used > active:
            E = torch.cat([E, E.new_full((self.used - active,), WAITING)])
        return E * (self.settings.alpha / (active + 1e-5))

    def factors(self) -> tuple[Tensor, Tensor]:
        """A [used, in] and B [out, used]."""
        blocks, used = self.blocks, self.used
        A, B = joined([*self.increlora_A][:blocks], 0), joined([*self.increlora_B][:blocks], 1)
        return A[:used], B[:, :used]

    def forward(self, x: Tensor) -> Tensor:
        kind = compute_dtype(x)
        x, values, (A, B) = x.to(kind), self.values(), self.factors()
        low = F.linear(x, A.to(kind)) * values.to(kind)
        y = self.linear(x) + F.linear(low, B.to(kind))
        if self.scored and torch.is_grad_enabled():
            y = Scored.apply(y, x.detach(), A.detach(), B.detach(), values.detach(), self.increlora_score)
        return y

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The plain layer that computes the same; the weight changes in place."""
        weight, (A, B) = as_linear_weight(self), self.factors()
        weight.copy_(weight.float() + (B * self.values()) @ A)
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
