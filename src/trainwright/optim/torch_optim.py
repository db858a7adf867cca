"""Any optimizer of ``torch.optim`` by its class name: SGD, RMSprop, NAdam, Adafactor, Muon …

The step and its memory are PyTorch's (https://docs.pytorch.org/docs/stable/optim.html), given the
gradients and the learning rate of the run; the run owns the state, so that resuming is exact. Muon ("Muon
is Scalable for LLM Training", arXiv 2502.16982) takes matrices only: limit it with ``params`` and give the
rest to ``adamw``. Where another update follows in the chain, the step is taken on a copy and passed on as
an update: (before - after) / lr.
Do not use it for plain AdamW: ``adamw`` computes the same faster.

Errors: an unknown optimizer or option; one that needs a closure (LBFGS) or sparse gradients (SparseAdam).
"""

from __future__ import annotations

from dataclasses import field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.method import Optimizer, State, Tensors
from trainwright.optim import _bridge
from trainwright.optim._trial import trial


class TorchOptim(Optimizer):
    """Any optimizer of ``torch.optim`` by its class name."""

    optimizer: str
    """Class name in ``torch.optim``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of that class, under its own names; lists stand for tuples."""
    whole: ClassVar[bool] = True
    reads_grads: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {"optimizer": "SGD", "options": {"momentum": 0.9}}

    def __post_init__(self) -> None:
        trial(self.optimizer, self.build)

    def build(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """The optimizer, new."""
        cls = _bridge.find(torch.optim, self.optimizer)
        made: torch.optim.Optimizer = cls(params, lr=self.lr, **_bridge.arguments(cls, self.options))
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
