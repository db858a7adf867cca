"""Supervised fine-tuning on conversations: cross-entropy of the assistant's tokens, and of nothing else.

    loss = - sum over the assistant's tokens of log p(token | everything before it in its conversation)

The chat template's generation markers say which tokens are the assistant's when the corpus is tokenized. Do
not use it on plain text: a corpus without such markers is refused, because every token of the prompts would
be learned.

Errors: a corpus without conversations; a step in which no token is learned.
"""
from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Objective, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.losses import logged_losses, trained_tokens


class Supervised(Objective):
    """Cross-entropy of the assistant's tokens, one number a position; 0 elsewhere."""

    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq", "factory")

    def init(self, model: nn.Module, ctx: Context) -> State:
        if ctx.inputs.get("data") and not open_corpus(ctx.path("data")).chat:
            raise UserError(
                f"supervised: the corpus {ctx.path('data').name} has no conversations (a column messages), "
                "so it does not say which tokens are the assistant's; use next_token to learn all tokens of "
                "plain text."
            )
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return logged_losses(model, batch, ctx)
