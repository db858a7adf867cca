"""Half fine-tuning: each round trains a random half of the matrices and freezes the rest, to forget less.

"HFT: Half Fine-Tuning for Large Language Models" (arXiv 2404.18466). At the start of a round (a fine-tuning
stage, or a task of a sequence) draw in each block, with whole matrices as the unit,

    2 of the 4 attention matrices,   1 of the 2 norms,
    2 of the 3 feed-forward matrices in a random half of the blocks and 1 of 3 in the others;
    theta <- theta - lr u  for what was drawn,   theta  unchanged for the rest,

and keep the draw until the round ends. In general floor(n/2) of n are drawn, and where n is odd one more in
half of the blocks (rounded down). Biases go with their matrix. Embeddings, head and final norm are trained
unless ``outside`` is false. Frozen matrices have requires_grad off: they have no gradient, no optimizer state
and no decay, and backward skips their gradient. The rest of a step remains, above all the gradient of the
activations: a sixth of a block's products is saved, and half of the optimizer's work. The paper's 30 % of the
time was not reached: a step of SmolLM2-135M on two cores takes 0.88 to 0.96 of the time of full training (one
and four rows of 256 tokens; ``benchmarks/adapters.py hft --rows 1``).

A stage is a round; in a sequence of stages give each its ``round``. ``rounds`` cuts one stage into several of
equal length: its draws are those of as many stages, and what methods remember of single parameters starts
anew, as in a new stage, while the schedule of the learning rate goes on. Optimizers that train the frozen
half in a later round must own it from the beginning (``params``).

Do not use it where the new task needs the whole model and the old ones do not matter: full fine-tuning learns
more.

State: none; the draw follows from seed and step.
Errors: a model without repeated blocks; more rounds than steps.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Command, Controller, Operate, ParamMap, State, Surgery
from trainwright.core.settings import Count
from trainwright.lm.layers import block_names, roles

NORM = "norm"


class Hft(Surgery, Controller):
    """A surgery that freezes half of the model, and a controller that requests it again after each round."""

    round: Count = 1
    """Which round of a sequence the stage begins with; each number draws another half."""
    rounds: Count = 1
    """Rounds of equal length that the stage is cut into."""
    outside: bool = True
    """Whether what is outside of the blocks (embeddings, head, final norm) is trained."""
    example: ClassVar[dict[str, Any]] = {"rounds": 5}

    def claims(self, model: nn.Module) -> set[str]:
        return set(units_of(model)) if self.outside else {"*"}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap:
        unit, drawn = units_of(model), self.draw(model, ctx)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(unit[name] in drawn if name in unit else self.outside)
        return ParamMap({})  # no state of a parameter is carried over

    def fold(self, model: nn.Module) -> None:
        model.requires_grad_(True)

    def tick(self, view: View, state: State) -> Iterable[Command]:
        if self.rounds > view.steps:
            raise UserError(
                f"hft: {self.rounds} rounds do not fit into the stage's {view.steps} steps; lower rounds."
            )
        if view.step and self.number(view.step, view.steps) != self.number(view.step - 1, view.steps):
            yield Operate(self)

    def number(self, step: int, steps: int) -> int:
        """The round that a step belongs to."""
        return self.round + (step * self.rounds // steps if steps else 0)

    def draw(self, model: nn.Module, ctx: Context) -> set[Unit]:
        """The units that the round of this step trains."""
        found: dict[str, dict[str, list[Unit]]] = {}
        for unit in dict.fromkeys(units_of(model).values()):
            found.setdefault(unit.category, {}).setdefault(unit.block, []).append(unit)
        drawn: set[Unit] = set()
        for category, blocks in found.items():
            rng = ctx.rng(f"hft/{self.number(ctx.step, ctx.steps)}/{category}", at=0)
            odd = [b for b, units in blocks.items() if len(units) % 2]
            more = {odd[i] for i in torch.randperm(len(odd), generator=rng)[:len(odd) // 2].tolist()}
            for block, units in blocks.items():
                most = len(units) // 2 + (block in more)
                drawn |= {units[i] for i in torch.randperm(len(units), generator=rng)[:most].tolist()}
        return drawn


class Unit(NamedTuple):
    """What is trained or frozen as one: a matrix with its bias, or a norm."""

    category: str
    block: str
    name: str


def units_of(model: nn.Module) -> dict[str, Unit]:
    """For each parameter within the repeated blocks the unit that it belongs to, by name.

    Raises:
        UserError: no block has a matrix.
    """
    parameters, blocks, out = dict(model.named_parameters()), block_names(model), dict[str, Unit]()
    role, matrix_of = roles(model, parameters), dict[str, str]()
    for name in role:
        if parameters[name].ndim > 1:
            matrix_of.setdefault(name.rpartition(".")[0], name)
    for name in role:
        module, block = name.rpartition(".")[0], next(b for b in blocks if name.startswith(f"{b}."))
        matrix = name if parameters[name].ndim > 1 else matrix_of.get(module)
        out[name] = Unit(NORM, block, module) if matrix is None else Unit(role[matrix], block, matrix)
    if all(unit.category == NORM for unit in out.values()):
        raise UserError(
            f"hft: a {type(model).__name__} has no repeated blocks with matrices, of which half could be "
            "frozen."
        )
    return out
