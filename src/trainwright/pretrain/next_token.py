"""Next-token prediction: the cross-entropy of each token given the tokens before it in its document.

    loss = - sum over positions t of log p(x[t+1] | x[..t])   within documents; the loop divides by the number
                                                               of targets

The objective of pretraining and continued pretraining. Logs ``train_loss/DOMAIN``.
Do not use it for chats: ``supervised`` makes sure that only the assistant's tokens are learned.

Errors: a model whose outputs depend on later tokens (measured on a few random ones), which would only learn
to copy.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective, State
from trainwright.families import check_causal
from trainwright.lm.losses import logged_losses, trained_tokens


class NextToken(Objective):
    """Cross-entropy of the next token, one number per position; 0 without a target."""

    default: ClassVar[bool] = True
    families: ClassVar[tuple[str, ...]] = ("causal_lm", "seq2seq", "factory")

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_causal(model)
        return {}

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return logged_losses(model, batch, ctx)
