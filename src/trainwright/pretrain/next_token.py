"""Next-token prediction: cross-entropy of each token given those before it in its document.

    loss = - sum over positions t of log p(x[t+1] | x[..t])   over documents; the loop divides by the number of targets

Logs ``train_loss/DOMAIN``. The objective of pretraining and of continued pretraining; for chats use ``supervised``, which makes
sure that only the assistant's tokens are learned.
"""
from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Batch, Objective, State
from trainwright.lm.losses import logged_losses, trained_tokens


class NextToken(Objective):
    """Cross-entropy of the next token, one number a position; 0 where there is no target."""

    default: ClassVar[bool] = True

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        return logged_losses(model, batch, ctx)
