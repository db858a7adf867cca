"""Heads on a language model: how a method puts one on, keeps what it has learned, and takes it off.

A head is a ``Carrier`` on the model itself, under a name of its own (``place``). To write a method that puts
one on, derive from ``PutsOnAHead`` first, and make the head::

    class RewardHead(PutsOnAHead, Surgery):
        place, called, file = "reward", "reward head", "reward.safetensors"

        def made(self, width, draw):
            return Head(width, self, draw)

It cannot be folded in: the artifact has the language model in ``backbone/`` and the head in ``adapter/``;
later stages load both, transformers alone does not. ``found`` gives the head to who computes with it.
"""
from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm import deltas
from trainwright.lm.layers import Carried, Carrier


def found(model: nn.Module, place: str, kind: type[Carried]) -> Carried | None:
    """The model's head of this class under this name, or None."""
    head = dict(model.named_children()).get(place)
    return head if isinstance(head, kind) else None


def put_on(model: nn.Module, place: str, head: Carrier) -> None:
    """Give the model a head, where its parameters are and in its mode."""
    some = next(model.parameters())
    model.add_module(place, head.to(some.device).train(model.training))


class PutsOnAHead:
    """What a surgery does that adds one head to a model."""

    name: ClassVar[str]
    place: ClassVar[str]
    """The head's name on the model."""
    called: ClassVar[str]
    """What a person calls it."""
    file: ClassVar[str]
    """Where its parameters are written, under their names in it."""
    folds: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True

    def made(self, width: int, draw: torch.Generator) -> Carrier:
        """The head for hidden states of this width, filled by ``draw``."""
        raise NotImplementedError

    def operate(self, model: nn.Module, ctx: Context) -> None:
        if self.place in dict(model.named_children()):
            raise UserError(f"{self.name}: the model has a {self.called} already; go on with that one.")
        width = families.blocks_of(families.made_from(model))[0]
        with torch.random.fork_rng(devices=[]):
            head = self.made(width, ctx.rng(self.name, at=0))
        put_on(model, self.place, head)

    def head(self, model: nn.Module) -> dict[str, Tensor]:
        """What the head learns."""
        return dict(model.get_submodule(self.place).named_parameters())

    def fold(self, model: nn.Module) -> None:
        """Takes the head off again."""
        delattr(model, self.place)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.write(self.head(model), folder / self.file)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.head(model), folder / self.file)
