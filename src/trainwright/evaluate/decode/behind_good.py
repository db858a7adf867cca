"""Samples behind the control token of good text, and never says a control token: conditional sampling.

How "Pretraining Language Models with Human Preferences" (arXiv 2302.08582) samples from a model that ``phf``
has trained conditionally. Where a text has neither control token yet, the next token is

    <good>, with probability 1

and from then on both control tokens get a score of minus infinity. A prompt that says <good> or <bad> itself
is only kept from saying more of them. The token counts among those that are written; a tokenizer that has it
as a control token (``control_tokens`` of the corpus stage) leaves it out of the text that is shown.

A model behaves behind <good> as in good text, and without this method as after ordinary training: forgetting
it makes conditional training look like none.

Not for a model that was not trained with control tokens.

Errors: no room for the ids, as in ``phf``, whose ``good``, ``bad`` and ``last`` these are.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Decode
from trainwright.lm.control_tokens import controls


class BehindGood(Decode):
    """Begins with the token of good text, and says no control token afterwards."""

    good: str = "<good>"
    """The tokenizer's token before good segments."""
    bad: str = "<bad>"
    """The tokenizer's token before bad segments."""
    last: int | None = None
    """Id of <good>, and <bad> the one before it; default: those of the tokenizer, or the model's last."""
    example: ClassVar[dict[str, Any]] = {"last": 222}

    def processor(self, model: nn.Module, ctx: Context) -> Callable[[Tensor, Tensor], Tensor]:
        good, bad = controls(model, ctx.tokenizer, self.good, self.bad, self.last, self.name)

        def process(tokens: Tensor, scores: Tensor) -> Tensor:
            shaped = scores.clone()
            shaped[:, [good, bad]] = -torch.inf
            begins = ~((tokens == good) | (tokens == bad)).any(1) & scores[:, good].isfinite()
            first = torch.full_like(scores, -torch.inf)
            first[:, good] = 0.0
            return torch.where(begins[:, None], first, shaped)

        return process
