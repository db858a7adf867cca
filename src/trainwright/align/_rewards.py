"""Rewards of answers: a head that makes one number of the state in which an answer ends."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.lm.heads import found
from trainwright.lm.layers import Carrier
from trainwright.lm.losses import body_states, positions

NAME = "reward"
"""The head, on the model itself."""


class Head(Carrier):
    """One number from hidden states: [N, d] to [N]. ``settings`` is the method that put it in."""

    def __init__(self, width: int, settings: Any, draw: torch.Generator) -> None:
        super().__init__()
        self.settings, self.out = settings, nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.out.weight, std=(width + 1) ** -0.5, generator=draw)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(hidden.to(self.out.weight.dtype)).squeeze(-1)  # type: ignore[no-any-return]


def head_of(model: nn.Module) -> Head:
    """The model's head.

    Raises:
        UserError: it has none.
    """
    head = found(model, NAME, Head)
    if head is None:
        raise UserError("the model gives no rewards: add { use = \"reward_head\" }, or name a reward model.")
    return head


def ends(rows: Batch) -> Tensor:
    """The place of the last token of each answer, int64 [N]: that which ends it; 0 where there is none."""
    learned = rows["targets"] != UNTRAINED
    place = torch.arange(learned.shape[1], device=learned.device)
    return ((place + 1) * learned).amax(1)


def rewards(model: nn.Module, rows: Batch) -> Tensor:
    """Rewards of answers, float32 [N].

    Args:
        rows: each a prompt and its answer: ``input_ids``, ``attention_mask`` and ``targets`` int64 [N, L],
            padded behind.
    """
    width = max(1, int(rows["attention_mask"].sum(1).max()))
    ids = rows["input_ids"][:, :width]
    places = positions(model, {"position_ids": torch.arange(width, device=ids.device).expand_as(ids)})
    given: Tensor = sharding.within(model, _rewards, ids, places, ends(rows))
    return given.float()


def _rewards(model: nn.Module, ids: Tensor, places: Tensor | None, last: Tensor) -> Tensor:
    hidden = body_states(model, ids, places)
    return head_of(model)(hidden[torch.arange(len(hidden), device=hidden.device), last])  # type: ignore[no-any-return]
