"""Documents in classes: the head on a model, its logits, and which label is which of its classes.

A batch of ``examples`` holds ``input_ids`` and ``attention_mask`` (int64 [R, L]) and ``labels`` (int64 [R]):
the number that a label is, or its place among the labels of the corpus. The head has classes of its own, in
an order of its own: names decide.
"""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus.columns import is_number
from trainwright.corpus.tokens import Corpus
from trainwright.lm.heads import found
from trainwright.lm.layers import Carrier

NAME = "class_head"
"""The head, on the model itself."""
STD = 0.02
"""Of its weights at the start."""


class Head(Carrier):
    """Logits of classes from hidden states: [R, L, d] to [R, classes].

    ``settings`` is the method that put it in, with ``classes``, ``pool`` and ``dropout``; ``draw`` fills it.
    """

    def __init__(self, width: int, settings: Any, draw: torch.Generator) -> None:
        super().__init__()
        self.settings = settings
        self.dense, self.dropout = nn.Linear(width, width), nn.Dropout(settings.dropout)
        self.out = nn.Linear(width, len(settings.classes))
        for layer in (self.dense, self.out):
            nn.init.normal_(layer.weight, std=STD, generator=draw)
            nn.init.zeros_(layer.bias)

    def forward(self, hidden: Tensor, there: Tensor) -> Tensor:
        """``there``: [R, L], 1 where a row has a token."""
        state = pooled(hidden, there, self.settings.pool).to(self.dense.weight.dtype)
        return self.out(self.dropout(torch.tanh(self.dense(state))))


def pooled(hidden: Tensor, there: Tensor, pool: str) -> Tensor:
    """One state [R, d] for each row: that of its first or last token, or the mean of all."""
    if pool == "mean":
        weight = (there / there.sum(1, keepdim=True).clamp(min=1)).to(hidden.dtype)
        return torch.einsum("rld,rl->rd", hidden, weight)
    place = torch.arange(there.shape[1], device=there.device) * there.bool()
    last = place.argmax(1) if pool == "last" else torch.zeros_like(place[:, 0])
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def head_of(model: nn.Module) -> Head:
    """The model's head.

    Raises:
        UserError: it has none.
    """
    head = found(model, NAME, Head)
    if head is None:
        raise UserError("the model has no classes: add { use = \"classifier\", classes = [\"…\", \"…\"] }.")
    return head


def class_logits(model: nn.Module, batch: Batch) -> Tensor:
    """Logits [R, classes], float32, in the order of the head's classes."""
    logits: Tensor = sharding.within(model, _logits, batch["input_ids"], batch["attention_mask"])
    return logits.float()


def _logits(model: nn.Module, ids: Tensor, there: Tensor) -> Tensor:
    body: Any = model.base_model
    return head_of(model)(body(input_ids=ids, attention_mask=there)[0], there)  # type: ignore[no-any-return]


def wanted(model: nn.Module, labels: Tensor, corpus: Corpus) -> Tensor:
    """Each row's class as the head numbers it, int64 [R], given ``labels`` as ``examples`` makes them.

    Raises:
        UserError: a label of the corpus that is none of the head's classes.
    """
    classes = head_of(model).settings.classes
    if strange := [name for name in corpus.labels if name not in classes]:
        raise UserError(f"documents of {corpus.folder.name} have the label {strange[0]!r}, and the "
                        f"classifier knows {', '.join(map(repr, classes))}.")
    numbers = all(is_number(name) for name in corpus.labels)
    right = torch.full_like(labels, UNTRAINED)
    for place, name in enumerate(corpus.labels):
        right[labels == (int(name) if numbers else place)] = classes.index(name)
    return right
