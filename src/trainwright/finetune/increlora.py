"""IncreLoRA: LoRA that starts at rank 1 everywhere, and gives more rank, in training, to the layers on which the loss depends.

"IncreLoRA: Incremental Parameter Allocation Method for Parameter-Efficient Fine-tuning" (arXiv 2308.12043). For W [out, in]

    y = W x + dW x,   dW = alpha / (r + 1e-5)  B diag(E) A,   A [., in], B [out, .] ~ N(0, 0.02^2),

r components are in use: one at the start, with E = 0. The next ``grow`` wait: their E stays at 1e-5, while their rows of A and
columns of B learn already. With s = sum |dW * dL/dW| / sqrt(in out) of a layer at a step,

    I <- beta1 I + (1 - beta1) s,   U <- beta2 U + (1 - beta2) |s - I|,   importance = I U.

Between ``begin`` and ``end``, after every ``every`` steps, the most important layers take ``grow`` components more into use.
How many layers that are follows from the budget: ranks rise evenly to ``rank`` times the number of layers in all, exactly, and
then E of what still waits is 0 for good. ``orthogonality`` times the mean over layers of ||A A' - I||_F and ||B' B - I||_F, over
all components of a layer that are in use or wait, is part of the loss.

Name it before clip and the optimizer: that part is added to the gradient. A layer has room for ``most`` components from the start
(a sharded model cannot get new parameters); those not in use cost memory alone. Until ``end`` a layer's dense gradient is formed
for a moment, row by row of the batch. Other than in the authors' code, s sums over these rows, so that accumulation and ranks
bend nothing, the budget is not overshot, components are held orthogonal to one another (theirs, a block each, have a norm
alone), and new ones have no warm-up of their own (an option there).

Not where all layers matter alike, or steps are few: scores need some tens of steps. State: ``shared``, by layer.
Errors: settings out of range; a stage too short to grow in; ``layers`` matches no linear layer, a taken or a tied one.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.finetune._increlora import IncreloraLinear, allocate, orthogonal, remember
from trainwright.lm import deltas
from trainwright.lm.layers import freeze, linear_layers, put
from trainwright.lm.schedules import check, steps_of

FILE = "increlora.safetensors"
PARTS = ("increlora_A", "increlora_B", "increlora_E", "ranks")


class Increlora(Surgery, Update):
    """LoRA whose ranks grow in training, where importance says."""

    rank: int = 8
    """Average rank of the layers in the end."""
    grow: int = 1
    """Components that a layer gets at a time; as many wait in each."""
    most: int = 0
    """The highest rank that a layer may come to; 0: four times the average."""
    alpha: float = 16.0
    """Scale of the addition, divided by the rank of now."""
    begin: float = 0.1
    """Where ranks begin to grow: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
    end: float = 0.5
    """Where they have grown: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
    every: float = 0.02
    """How often they grow: a share of the stage's steps (below 1) or a number of steps (from 1 on)."""
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
        suite="adapt", claim="better than LoRA and AdaLoRA with as many trained numbers, above all where data are few (GLUE)",
        drop=("adamw",), add=({"use": "increlora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}),
        search={"adamw.lr": [3e-3, 9e-3, 2.7e-2]},
        baseline=({"use": "lora", "rank": 8}, {"use": "adamw", "lr": 9e-3, "weight_decay": 0.0}), versus="LoRA")
    example: ClassVar[dict[str, Any]] = {"rank": 2, "begin": 1, "end": 0.8, "every": 1}

    def __post_init__(self) -> None:
        check(begin=self.begin, end=self.end, every=self.every)
        if min(self.rank, self.grow) < 1 or 0 < self.most < self.rank or not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1):
            raise ValueError("rank and grow must be 1 or more, most 0 or no less than rank, beta1 and beta2 from 0 to below 1.")

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
        """The layers that this method, and not another of its kind, has put in."""
        return {n: m for n, m in model.named_modules() if isinstance(m, IncreloraLinear) and m.settings == self}

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.steps > 1 and self.turn(ctx.steps, ctx)[1] < 1:                            # a plan tries one step of any stage
            raise UserError(f"increlora: no step of {ctx.steps} is one at which ranks could grow: begin = {self.begin}, end = "
                            f"{self.end}, every = {self.every}.")
        none = dict.fromkeys(self.mine(model), 0.0)
        return {"shared": {"ranks": dict.fromkeys(none, 1), "sensitivity": none, "uncertainty": dict(none), "steps": 0}}

    def turn(self, step: int, ctx: Context) -> tuple[int, int]:
        """The number of the growth that follows this step, counted from 1 (0: none does), and how many there are in all."""
        begin, every = steps_of(self.begin, ctx.steps), max(1, steps_of(self.every, ctx.steps))
        count = (steps_of(self.end, ctx.steps) - begin) // every
        number, rest = divmod(step - begin, every)
        return (number if rest == 0 and 0 < number <= count else 0), count

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        shared, out = state["shared"], dict(updates)
        shared["steps"] = ctx.step + 1
        scores = {n.rpartition(".")[0]: ctx.grads[n] for n in updates if n.removesuffix(".increlora_score") in shared["ranks"]}
        if ctx.step < steps_of(self.end, ctx.steps):
            remember(scores, shared, self.beta1, self.beta2)
        for name in scores:
            out |= orthogonal(name, ctx.policy.get_submodule(name), updates, params, self.orthogonality / (2 * len(scores)))
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
        """``increlora.safetensors``: of each layer A, B, E, and ``ranks``: how many components are in use, and how many wait."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)
