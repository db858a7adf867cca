"""EfficientLLM: prune neurons and heads in small steps while pretraining goes on; what is left is the design.

"EfficientLLM: Scalable Pruning-Aware Pretraining for Architecture-Agnostic Edge Language Models" (arXiv
2502.06663). A unit is a neuron of a feed-forward part (its rows of the layers that read, its column of the
one that writes), or a key-value head with the query heads that it serves; biases of its rows go with it. With
g = dL/dw the gradient of the step that is trained anyway, each step adds to what a unit is worth

    s_u <- s_u + sum over its weights of |g w - (g w)^2 / 2|,

the loss without the weight in second order, g^2 as the diagonal of the Hessian. The sum is one of sizes:
signed terms would cancel. Every ``every`` steps from ``begin`` to ``end``, units go, those of the least s_u /
(number of their weights) in the whole model, as many as the share to remove by then, which grows in a line
up to ``sparsity``. So widths differ by layer, and neurons and heads compete. Then s begins anew. In the
matrix W [out, in] that writes, columns K that stay take over for columns R that go, by the layer's own
Hessian H = X^T X of the inputs X [positions, in] of the step's batch (damped by ``damping`` of its mean
diagonal):

    W_K <- W_K + W_R H_RK (H_KK)^-1,    W_R <- 0,

which changes the layer's outputs least. What optimizers remember of removed weights goes, of others it stays.

Nothing changes its shape: units that are gone are zeros and a mask, which go with the model, and which later
stages respect. Zeros are multiplied as other numbers are, so that no time is saved here. ``kept`` is logged:
the share of the units' weights that is left. At such a step the batch goes through the model once more, and H
takes in^2 float32 in each layer that loses units.

The authors publish no code; sizes of s, the division by weights and the line are ours. Their third kind of
unit, a dimension of the hidden states, is left out: norms divide by their number, so that zeros would not be
the smaller model. At least one unit stays in each part. Not for a stage of few steps: with one removal it is
pruning and retraining. Errors: no part of the model has such units; settings out of range; a stage without a
step at which units could go.
State: ``shared``: what units are worth, which are left, and which go next.
"""
from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import flops, masks, sharding
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Command, Controller, Operate, ParamMap, State, Surgery, Tensors, Update
from trainwright.core.settings import Part, Positive
from trainwright.lm import units
from trainwright.lm.layers import as_linear_weight, block_names, in_out, linear_layers
from trainwright.lm.schedules import check_parts, steps_of
from trainwright.lm.structured import unit_masks


class Efficientllm(Surgery, Controller, Update):
    """Update: what units are worth. Controller: which go, and when. Surgery: takes them out."""

    sparsity: Part = 0.5
    """Share of the weights of neurons and heads that is gone in the end."""
    begin: int | float = 0.0
    """Where units begin to go: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    end: int | float = 0.7
    """Where all have gone: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    every: int | float = 0.02
    """How often some go: a share of the stage's steps (0.2, 1.0) or a number of steps (20)."""
    damping: Positive = 0.01
    """What is added to the diagonal of a layer's Hessian, as a share of its mean."""
    layers: str = "all-linear"
    """Layers whose units may go: ``all-linear``, ``attention``, ``mlp``, or a glob of module names."""
    gone: tuple[str, ...] = ()
    """The units of one removal, a layer and their numbers each: what the method itself notes in the journal
    of a run. Empty in a recipe."""
    params: ClassVar[str] = "*.weight"  # type: ignore[misc]
    example: ClassVar[dict[str, Any]] = {"every": 1}
    off: ClassVar[dict[str, Any] | None] = {"sparsity": 0.0}

    def __post_init__(self) -> None:
        check_parts(begin=self.begin, end=self.end, every=self.every)

    def claims(self, model: nn.Module) -> set[str]:
        layers, owned = linear_layers(model, self.layers), set[str]()
        for part in self.parts(model):
            owned |= {f"{n}.{own}" for n in part.readers for own, _ in layers[n].named_parameters()}
            owned.add(f"{part.writer}.weight")
        return owned

    def parts(self, model: nn.Module) -> list[units.Part]:
        """The parts of the model from which units can go."""
        layers = linear_layers(model, self.layers)
        found = [part for block in block_names(model) for part in units.parts(model, layers, block)]
        if not found:
            raise UserError(f"efficientllm: layers = {self.layers!r} has no neurons or heads in a "
                            f"{type(model).__name__} that could be left out whole.")
        return found

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        if not self.gone:
            return None
        layers, by_writer = linear_layers(model, self.layers), {p.writer: p for p in self.parts(model)}
        hidden: Tensors = {}
        for line in self.gone:
            writer, *numbers = line.split() or [""]
            part = by_writer.get(writer)
            if part is None or not all(n.isdecimal() and int(n) < part.units for n in numbers):
                raise UserError(f"efficientllm: gone has {line[:60]!r}, which is no layer of the model with "
                                "numbers of its units; a recipe leaves gone out.")
            stay = torch.ones(part.units, dtype=torch.bool)
            stay[[int(n) for n in numbers]] = False
            for name, mask in unit_masks(part, layers, stay.nonzero()[:, 0]).items():
                turned = as_linear_weight(layers[name]) is not layers[name].weight
                hidden[f"{name}.weight"] = ~(mask.T.contiguous() if turned else mask)
                if name in part.readers and layers[name].bias is not None:
                    hidden[f"{name}.bias"] = ~mask.any(1)
        for name, those in hidden.items():
            masks.keep(model, name, ~those)
        return ParamMap({n: (n, partial(_without, hidden.get(n))) for n, _ in model.named_parameters()})

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.steps > 1 and self.turn(ctx.steps, ctx.steps)[1] < 1:    # a plan tries one step of any stage
            raise UserError(f"efficientllm: no step of {ctx.steps} is one at which units could go: begin = "
                            f"{self.begin}, end = {self.end}, every = {self.every}.")
        layers, mine = linear_layers(model, self.layers), self.parts(model)
        return {"shared": {
            "worth": {p.writer: torch.zeros(p.units) for p in mine}, "going": [],
            "left": {p.writer: _left(p, layers, masks.of(model)) for p in mine},
            "weights": {p.writer: _weights(p, layers) for p in mine}}}

    def turn(self, step: int, steps: int) -> tuple[int, int]:
        """Number of the removal before this step, from 1 (0: there is none), and how many there are."""
        begin, every = steps_of(self.begin, steps), max(1, steps_of(self.every, steps))
        count = (min(steps_of(self.end, steps), steps - 1) - begin) // every
        number, rest = divmod(step - begin, every)
        return (number if rest == 0 and 0 < number <= count else 0), count

    def tick(self, view: View, state: State) -> Iterable[Command]:
        if state["shared"]["going"]:
            yield Operate(dataclasses.replace(self, gone=tuple(state["shared"]["going"])))

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        shared, model = state["shared"], _policy(ctx)
        layers, mine = linear_layers(model, self.layers), self.parts(model)
        if shared["going"]:
            shared |= {"going": [], "left": {p.writer: _left(p, layers, masks.of(model)) for p in mine}}
            shared["worth"] = {writer: torch.zeros_like(t) for writer, t in shared["worth"].items()}
        for part in mine if self.sparsity else ():
            worth = _worth(part, layers, params, ctx.grads)
            shared["worth"][part.writer] = shared["worth"][part.writer].to(worth.device) + worth
        each = shared["weights"]
        kept = sum(int(left.sum()) * each[w] for w, left in shared["left"].items())
        ctx.note("kept", kept / sum(len(left) * each[w] for w, left in shared["left"].items()))
        return updates

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        number, count = self.turn(ctx.step + 1, ctx.steps)
        if not (number and ctx.grads):
            return
        shared = state["shared"]
        going = choose(shared, self.sparsity * number / count)
        shared["going"] = [" ".join(map(str, (writer, *numbers))) for writer, numbers in going.items()]
        if going:
            self.make_up(going, shared["left"], params, ctx)

    def make_up(self, going: dict[str, list[int]], left: Tensors, params: Tensors, ctx: Context) -> None:
        """Let the columns that stay take over, in each layer that writes and loses units."""
        model, new = _policy(ctx), {}
        layers = {n: m for n, m in linear_layers(model, self.layers).items() if n in going}
        assert ctx.again is not None
        with flops.apart(ctx), grams(layers, ctx) as seen:
            ctx.again()
        for name, layer in layers.items():
            weight = sharding.full(params[f"{name}.weight"].detach())
            turned = as_linear_weight(layer) is not layer.weight
            stay = left[name].clone()
            stay[going[name]] = False
            leaves = left[name] & ~stay
            each = in_out(layer)[0] // len(stay)
            W = taken_over((weight.T if turned else weight).float(), sharding.summed(seen[name]),
                           stay.repeat_interleave(each), leaves.repeat_interleave(each), self.damping)
            new[f"{name}.weight"] = sharding.like((W.T if turned else W).contiguous().to(weight),
                                                  params[f"{name}.weight"])
        sharding.write(model, params, new)


def choose(shared: dict[str, Any], share: float) -> dict[str, list[int]]:
    """The units that go, by layer that writes, so that this share of all weights is gone then.

    Args:
        shared: the method's state; ``worth`` and ``left`` by unit, ``weights`` of one unit.
    """
    each, left = shared["weights"], shared["left"]
    gone = sum(int((~of).sum()) * each[w] for w, of in left.items())
    missing = share * sum(len(of) * each[w] for w, of in left.items()) - gone
    worth = {w: (t.double() / each[w]).tolist() for w, t in shared["worth"].items()}
    order = sorted((worth[w][u], w, u) for w, of in left.items() for u in of.nonzero()[:, 0].tolist())
    still, going = {w: int(of.sum()) for w, of in left.items()}, dict[str, list[int]]()
    for _, writer, unit in order:
        if missing < each[writer] / 2:
            break
        if still[writer] > 1:
            going.setdefault(writer, []).append(unit)
            still[writer] -= 1
            missing -= each[writer]
    return going


def taken_over(W: Tensor, H: Tensor, stay: Tensor, leave: Tensor, damping: float) -> Tensor:
    """W [out, in] with the columns ``leave`` zero, and those that ``stay`` changed so that W X^T changes
    least; H = X^T X [in, in], and both are bool [in]."""
    W, stay, leave = W.clone(), stay.to(W.device), leave.to(W.device)
    here = H[stay][:, stay].double()
    mean = H.diagonal().double().mean()
    here.diagonal().add_(damping * (mean if mean > 0 else torch.ones_like(mean)))
    across = torch.cholesky_solve(H[stay][:, leave].double(), torch.linalg.cholesky(here))
    W[:, stay] += (W[:, leave].double() @ across.T).to(W)
    W[:, leave] = 0
    return W


@contextmanager
def grams(layers: dict[str, nn.Module], ctx: Context) -> Iterator[Tensors]:
    """X^T X of the inputs of layers, by name, in the passes within; on this rank."""
    found = {n: torch.zeros(in_out(m)[0], in_out(m)[0], device=ctx.device) for n, m in layers.items()}

    def look(name: str, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if torch.is_grad_enabled():
            x = args[0].detach().flatten(0, -2).float()
            found[name].addmm_(x.T, x)

    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in layers.items()]
    compiled, ctx.compile = ctx.compile, False                            # compiled code passes hooks by
    try:
        yield found
    finally:
        ctx.compile = compiled
        for hook in hooks:
            hook.remove()


def _policy(ctx: Context) -> nn.Module:
    assert ctx.policy is not None
    return ctx.policy


def _worth(part: units.Part, layers: dict[str, nn.Module], params: Tensors, grads: Tensors) -> Tensor:
    """|g w - (g w)^2 / 2| of a part's units [units], over all ranks."""
    total = torch.zeros((), device=params[f"{part.writer}.weight"].device)
    for name in (*part.readers, part.writer):
        if f"{name}.weight" not in grads:
            continue
        w = params[f"{name}.weight"].detach().float()
        turned = as_linear_weight(layers[name]) is not layers[name].weight
        product = w * grads[f"{name}.weight"].float()
        size = (product - product.square() / 2).abs()
        along = sharding.full(size.sum(int(name != part.writer) ^ int(turned)))
        several = part.readers.get(name, 1)
        total = total + along.view(several, part.units, -1).sum((0, 2))
    return total.expand(part.units)


def _left(part: units.Part, layers: dict[str, nn.Module], held: Tensors) -> Tensor:
    """The units that masks have left, bool [units]."""
    alive = units.alive(part, layers, held).cpu()
    return torch.zeros(part.units, dtype=torch.bool).index_fill(0, alive, True)


def _weights(part: units.Part, layers: dict[str, nn.Module]) -> int:
    """Weights of one unit."""
    return sum(layers[n].weight.numel() for n in (*part.readers, part.writer)) // part.units


def _without(hidden: Tensor | None, t: Tensor) -> Tensor:
    """What is remembered of a parameter, zero where its entries are hidden."""
    return t if hidden is None else t.masked_fill(sharding.like(hidden, t), 0)
