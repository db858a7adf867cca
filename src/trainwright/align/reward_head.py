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

from typing import Any, ClassVar

import torch

from trainwright.align._rewards import NAME, Head
from trainwright.core.method import Surgery
from trainwright.lm.heads import PutsOnAHead


class RewardHead(PutsOnAHead, Surgery):
    """A trained number on the state in which an answer ends."""

    place: ClassVar[str] = NAME
    called: ClassVar[str] = "reward head"
    file: ClassVar[str] = "reward.safetensors"
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["chosen", "rejected"], "domains": ["chat"], "length": 32},
        {"use": "bradley_terry"})

    def made(self, width: int, draw: torch.Generator) -> Head:
        return Head(width, self, draw)
