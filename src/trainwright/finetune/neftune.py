"""NEFTune: uniform noise on the embeddings while a model is tuned on instructions, and none afterwards.

"NEFTune: Noisy Embeddings Improve Instruction Finetuning" (arXiv 2310.05914). With x [T, D] the embeddings of
a row of T tokens, the model reads in training

    x + alpha / sqrt(T D) eps,    eps uniform in [-1, 1], [T, D],

so that the noise has a length of about alpha / sqrt(3) in each row. A row's noise is drawn from the seed, the
step and the row's own tokens: it depends neither on micro-batches nor on ranks, and comes again where a pass
is taken again. Here T counts all tokens of a row, which is packed; in the paper a row is one conversation.

Nothing is added to the weights, and the exported model is the plain one. Do not use it in pretraining, nor
where answers are to be learned to the word: the paper finds longer answers that people prefer, and none that
are better in tasks with one right answer. The noise is drawn on the CPU, which a fast GPU may wait for.

Errors: a model that has no embeddings of tokens.
"""
from __future__ import annotations

import hashlib
import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Rate

HOOK = "_neftune"
"""Where an embedding keeps the handle with which its noise is taken off."""


class Neftune(Surgery):
    """Adds uniform noise to the embeddings in training."""

    alpha: Rate = 5.0
    """Size of the noise, before it is divided by the root of the row's entries; in the paper 5, 10 or 15."""
    example: ClassVar[dict[str, Any]] = {"alpha": 2.0}
    off: ClassVar[dict[str, Any] | None] = {"alpha": 0.0}

    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        embedding = embeddings(model)
        embedding.__dict__[HOOK] = embedding.register_forward_hook(Noise(self.alpha, ctx))
        return None

    def fold(self, model: nn.Module) -> None:
        handle = embeddings(model).__dict__.pop(HOOK, None)
        if handle is not None:
            handle.remove()


class Noise:
    """What is added to the output of an embedding in training."""

    def __init__(self, alpha: float, ctx: Context) -> None:
        self.alpha, self.ctx = alpha, ctx

    def __deepcopy__(self, memo: dict[int, Any]) -> Noise:
        return Noise(self.alpha, self.ctx)            # a copy of the model goes on in the same run

    def __call__(self, module: nn.Module, given: tuple[Any, ...], x: Tensor) -> Tensor:
        if not module.training or not self.alpha:
            return x
        ids = given[0]
        rows = [self.row(one, x.shape[-2:]) for one in ids.reshape(-1, ids.shape[-1]).cpu()]
        noise = torch.stack(rows).view(x.shape).to(x.device, x.dtype)
        return x + self.alpha / math.sqrt(x.shape[-1] * x.shape[-2]) * noise

    def row(self, ids: Tensor, shape: torch.Size) -> Tensor:
        """The noise of one row, uniform in [-1, 1]."""
        key = hashlib.sha256(ids.numpy().tobytes()).hexdigest()
        return 2 * torch.rand(shape, generator=self.ctx.rng(f"neftune/{key}")) - 1


def embeddings(model: nn.Module) -> nn.Module:
    """The module that makes vectors of tokens."""
    found = model.get_input_embeddings() if isinstance(model, PreTrainedModel) else None
    if not isinstance(found, nn.Embedding):
        raise UserError("neftune needs a model of transformers with embeddings of tokens.")
    return found
