"""Any optimizer of the package ``pytorch_optimizer`` by its class name: Lion, SOAP, ADOPT, MARS, Prodigy …

The step and its memory are the package's (https://github.com/kozistr/pytorch_optimizer), given the
gradients and the learning rate of the run; the run owns the state, so that resuming is exact. Optimizers
that expect keys in the parameter group get them from ``group`` (for the package's Muon ``group = {
use_muon = true }``, with ``params`` limited to matrices). Schedule-free ones are evaluated and exported
with their averaged weights; keep the schedule constant with them. Where another update follows in the
chain, the step is taken on a copy and passed on as an update: (before - after) / lr.

Errors: the package is not installed; an unknown optimizer or option; an optimizer that needs a closure or
another backward pass, wraps another optimizer, or keeps something that a resumed run could not restore.
"""

from __future__ import annotations

import importlib
from dataclasses import field
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors
from trainwright.optim import _bridge
from trainwright.optim._remember import restore
from trainwright.optim._trial import trial


class PytorchOptimizer(Optimizer):
    """Any optimizer of the package ``pytorch_optimizer`` by its class name."""

    optimizer: str
    """Class name in ``pytorch_optimizer``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that class, under its own names; lists stand for tuples."""
    group: dict[str, Any] = field(default_factory=dict)
    """Keys of the parameter group, for optimizers that ask for them."""
    whole: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"optimizer": "Lion", "lr": 1e-4}
    needs: ClassVar[tuple[str, ...]] = ("pytorch_optimizer",)

    def __post_init__(self) -> None:
        trial(self.optimizer, self.build)

    def kind(self) -> type[Any]:
        return _bridge.find(_package(), self.optimizer)

    def build(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer, new."""
        cls = self.kind()
        made: torch.optim.Optimizer = cls(
            [{"params": params, **self.group}], lr=self.lr, **_bridge.arguments(cls, self.options)
        )
        return made

    def init(self, model: nn.Module, ctx: Context) -> State:
        trained = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
        mine = [trained[n] for n in match(self.params, trained)]
        _bridge.fits(f"{self.name} ({self.optimizer})", self.build, mine)
        return {}

    def apply(self, updates: Tensors, params: Tensors, state: State, ctx: Context, lr: float) -> None:
        if ctx.grads:  # some optimizers overwrite the gradients, which others still read
            updates = {n: u.clone() for n, u in updates.items()}
        _bridge.step(
            self.build, updates, params, state, lr, ctx.rng(f"{self.name}/{self.params}").initial_seed()
        )

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        lr, seed = self.lr * float(ctx.knobs["lr"]), ctx.rng(f"{self.name}/{self.params}").initial_seed()
        return _bridge.difference(self.build, updates, params, state, lr, seed)

    def view(self, params: Tensors, state: State) -> Tensors:
        # schedule-free optimizers have it: their trained weights are not the ones to evaluate
        switch = getattr(self.kind(), "eval", None)
        if switch is None or not state.get("param"):
            return {}
        shown = {n: params[n].detach().clone() for n in state["param"]}
        optimizer = self.build(list(shown.values()))
        restore(optimizer, shown, state)
        switch(optimizer)
        return shown


def _package() -> ModuleType:
    if find_spec("pytorch_optimizer") is None:
        raise ValueError(
            "the package pytorch_optimizer is not installed: pip install trainwright[optimizers]"
        )
    return importlib.import_module("pytorch_optimizer")
