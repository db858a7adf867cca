"""Questions with one right answer: is what a model says that answer, and how likely is it to the model?"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from trainwright.core.context import Context
from trainwright.core.method import UNTRAINED
from trainwright.lm.losses import evaluating, padded, token_losses


class Asked(NamedTuple):
    """A question and the answer behind it as tokens, the answer's text, and what it is about."""

    prompt: list[int]
    written: list[int]
    answer: str
    attribute: str


def exact(said: str, answer: str) -> bool:
    """Whether the first line of what was said is the answer, but for space around it and a full stop behind it."""
    first = (said.strip().splitlines() or [""])[0]
    return first.strip().removesuffix(".") == answer.strip().removesuffix(".")


def answer_losses(model: nn.Module, asked: Sequence[Asked], ctx: Context) -> list[float]:
    """Nats of each answer behind its question, summed over its tokens."""
    rows = [((one.prompt + one.written)[:-1], [UNTRAINED] * (len(one.prompt) - 1) + one.written) for one in asked]
    with torch.no_grad(), evaluating(model):
        losses = token_losses(model, padded(rows, ctx), ctx)
    return [float(one) for one in losses.double().sum(1)]
