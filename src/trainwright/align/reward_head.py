"""A head that gives an answer a reward, on top of a language model: the makings of a reward model.

As in "Learning to summarize from human feedback" (arXiv 2009.01325). With h [d] the last hidden state at the
token that ends the answer y to x,

    r(x, y) = w . h,        w drawn from N(0, 1 / (d + 1))

The whole model stays trainable; an adapter beside it trains the head and itself. ``bradley_terry`` is the
objective that trains it on preference pairs, ``preference_accuracy`` measures it, and later stages take the
model as ``from.reward``. A reward is known up to a constant only, which is why w . h has none: the comparison
of two answers to one prompt is what it says, not its size.

It cannot be folded in: the artifact has the language model in ``backbone/`` and the head in ``adapter/``;
later stages load both, transformers alone does not. Left out of the paper: rewards are not shifted to a mean
of 0 afterwards (``center`` of ``bradley_terry`` holds them there).

Not for answers that a program can check.

Errors: a second reward head on the same model.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.align._rewards import NAME, Head
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas

FILE = "reward.safetensors"


class RewardHead(Surgery):
    """A trained number on the state in which an answer ends."""

    folds: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},
        {"use": "bradley_terry"})

    def operate(self, model: nn.Module, ctx: Context) -> None:
        if any(name == NAME for name, _ in model.named_children()):
            raise UserError("reward_head: the model has a reward head already; go on with that one.")
        width = families.blocks_of(families.made_from(model))[0]
        some = next(model.parameters())
        with torch.random.fork_rng(devices=[]):
            head = Head(width, self, ctx.rng("reward_head", at=0))
        model.add_module(NAME, head.to(some.device).train(model.training))

    def head(self, model: nn.Module) -> dict[str, Tensor]:
        return dict(model.get_submodule(NAME).named_parameters())

    def fold(self, model: nn.Module) -> None:
        """Takes the head off again."""
        delattr(model, NAME)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``reward.safetensors``: the head's parameters under their names in it."""
        deltas.write(self.head(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.head(model), folder / FILE)
