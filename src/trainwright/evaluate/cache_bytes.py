"""How many bytes a model remembers of a text while it writes: keys and values, or a state.

    cache_bytes/N = bytes of all tensors of the cache behind N tokens of one text

Softmax attention keeps keys and values of every token, 2 layers heads D numbers each; a linear attention
(``liger``, ``lolcats``) keeps as much behind a thousand tokens as behind ten. Counted, not sampled: it is the
same on every machine. Tokens are drawn at random, which changes nothing.

Not the peak memory of writing, to which weights and activations belong.

Errors: a model that writes no text; more tokens than it has positions.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count
from trainwright.lm.generation import writes
from trainwright.lm.losses import most_positions


class CacheBytes(Evaluator):
    """Measures ``cache_bytes/N`` for texts of some lengths."""

    lengths: tuple[Count, ...] = (64, 256)
    """Tokens behind which the cache is counted."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("cache_bytes/*",)
    example: ClassVar[dict[str, Any]] = {"lengths": [8, 16]}

    def __post_init__(self) -> None:
        if not self.lengths:
            raise ValueError("lengths names one length at least")

    def measure(self, model: Any, ctx: Context) -> dict[str, float]:
        if not writes(model):
            raise UserError(f"cache_bytes: a {type(model).__name__} writes no text.")
        most, words = most_positions(model), model.get_input_embeddings().num_embeddings
        if most is not None and max(self.lengths) > most:
            raise UserError(
                f"cache_bytes: {max(self.lengths)} tokens are more than the {most} positions of the model."
            )
        found = {}
        for length in self.lengths:
            ids = torch.randint(words, (1, length), generator=ctx.rng("cache_bytes", at=0))
            cache = model(input_ids=ids.to(ctx.device), use_cache=True).past_key_values
            found[f"cache_bytes/{length}"] = float(sum(map(_bytes, cache.layers)))
        return found


def _bytes(layer: nn.Module) -> int:
    """Of all tensors of a layer of a cache, be they its own or in a table of it."""
    own = [
        v for value in vars(layer).values() for v in (value.values() if isinstance(value, dict) else [value])
    ]
    return sum(t.numel() * t.element_size() for t in own if isinstance(t, Tensor))
