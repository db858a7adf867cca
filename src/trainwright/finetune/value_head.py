"""A head that says a number in each place of a text, for objectives that need a value beside the tokens.

As the value of "Pretraining Language Models with Human Preferences" (arXiv 2302.08582), which predicts the
reward of the token to come: with h_t [d] the last hidden state in place t,

    V_t = w . h_t + b,        w = 0 and b = 0 at the start

It is trained by ``phf`` with ``mode = "awr"``, together with the model, into which its gradient flows. It is
of use in training alone: the artifact is the plain model without it.

Not without such an objective: nothing trains it, and it costs d + 1 numbers.

Errors: a second one on the same model; a model without a layer that makes its logits.
"""
from __future__ import annotations

from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm.heads import put_on
from trainwright.lm.values import NAME, Head, has_value_head, width_of


class ValueHead(Surgery):
    """A trained number of each last hidden state, taken off when the stage ends."""

    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "phf", "patterns": ["farmer", "return"], "mode": "awr"},)

    def operate(self, model: nn.Module, ctx: Context) -> None:
        if has_value_head(model):
            raise UserError("value_head: the model has a value head already.")
        put_on(model, NAME, Head(width_of(model), self))

    def fold(self, model: nn.Module) -> None:
        """Takes the head off again."""
        delattr(model, NAME)
