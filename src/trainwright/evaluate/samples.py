"""Texts that the model writes, kept for the report, and how varied they are.

Each prompt is continued once, with randomness that depends only on the seed. The stage's decoding methods
(``nucleus``, ``min_p``) shape what is drawn; without one a model samples as its generation config says,
which is among the 50 likeliest tokens if it says nothing. ``distinct_2`` is the number of distinct pairs
of adjacent tokens over all such pairs in the samples: near 0 where the model repeats itself.

Errors: no prompt; a stage without a tokenizer; ``chat`` with a tokenizer that has no template; a prompt
that fills all positions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar

from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.lm.generation import Prompt, encoded, room, written


class Samples(Evaluator):
    """Keeps a text for each prompt and measures ``sample_tokens`` (mean length) and ``distinct_2``."""

    prompts: tuple[str, ...]
    """Texts to continue."""
    new_tokens: int = 60
    """Most tokens to write."""
    temperature: float = 0.8
    """Temperature of sampling; 0 always takes the likeliest token."""
    chat: bool = False
    """Put each prompt through the chat template, as a user's turn."""
    makes: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[dict[str, Any]] = {"prompts": ["The"], "new_tokens": 4}

    def __post_init__(self) -> None:
        if not self.prompts:
            raise ValueError("prompts names no prompt")
        if self.new_tokens < 1 or self.temperature < 0:
            raise ValueError(
                f"new_tokens must be positive and temperature 0 or more, not {self.new_tokens} and "
                f"{self.temperature}"
            )

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        tokenizer = ctx.tokenizer
        if tokenizer is None:
            raise UserError("samples: the stage has no tokenizer to read the prompts with.")
        read = [self._encoded(model, tokenizer, prompt) for prompt in self.prompts]
        asked = [Prompt(ids, room(model, len(ids), self.new_tokens, "samples"),
                        ctx.rng(f"samples/{i}", at=0).initial_seed(), self.temperature)
                 for i, ids in enumerate(read)]
        said = written(model, tokenizer, asked, ctx)
        for i, (prompt, ids) in enumerate(zip(self.prompts, said, strict=True)):
            text = tokenizer.decode(ids, skip_special_tokens=True)
            ctx.show(f"sample/{i}", (prompt + "\n" if self.chat else prompt) + text)
        pairs = [pair for ids in said for pair in pairwise(ids)]
        return {
            "sample_tokens": sum(map(len, said)) / len(said),
            "distinct_2": len(set(pairs)) / max(1, len(pairs)),
        }

    def _encoded(self, model: nn.Module, tokenizer: Any, prompt: str) -> list[int]:
        missing = "samples: chat = true, but the tokenizer has no chat template."
        ids = encoded(model, tokenizer, prompt, self.chat, missing)
        if not ids:
            raise UserError("samples: a prompt is empty and the tokenizer puts nothing in front of it.")
        return ids
