"""A side network that reads a frozen decoder's hidden states and speaks in its place."""
from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache

from trainwright.core import sharding
from trainwright.core.errors import UserError

TEMPERATURE = 0.1
"""Of the gates: sigmoid(a / 0.1)."""
START = -1
"""Stands for the embeddings among the numbers of the blocks."""


class Ladder(nn.Module):
    """A small decoder with, before each of its blocks, a gate and a way down from a block of the backbone."""

    def __init__(self, side: nn.Module, layers: list[int], wide: int, dropout: float) -> None:
        super().__init__()
        narrow = side.config.hidden_size
        self.side, self.layers, self.dropout = side, layers, dropout
        self.downs = nn.Sequential(*(nn.Linear(wide, narrow) for _ in range(len(layers) + 1)))
        self.gates = nn.Parameter(torch.zeros(len(layers)))
        self.up = nn.Linear(narrow, wide)
        self.seen: dict[int, Tensor] = {}
        self.handles: list[RemovableHandle] = []
        for j, block in enumerate(sharding.blocks(side)):
            block.register_forward_pre_hook(partial(self.mix, j))

    def forward(self, told: dict[str, Any], cache: DynamicCache | None) -> Tensor:
        """Hidden states for the head, [..., wide], from what the backbone's blocks gave (``seen``).

        ``told`` is what the backbone was called with. Where its weights are bfloat16, the side network computes in that type.
        """
        kind, device = self.seen[START].dtype, self.seen[START].device.type
        lower = kind != self.up.weight.dtype and not torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype=kind) if lower else nullcontext():
            return self.through(told, cache)

    def through(self, told: dict[str, Any], cache: DynamicCache | None) -> Tensor:
        start = self.downs[0](F.dropout(self.seen[START], self.dropout, self.training))
        given = {n: told[n] for n in ("attention_mask", "position_ids") if n in told}
        self.seen[START] = start                                      # the first side block reads this and nothing added to it
        out = self.side(inputs_embeds=start, past_key_values=cache, use_cache=cache is not None, **given)
        return self.up(F.dropout(out[0], self.dropout, self.training))

    def mix(self, j: int, block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What side block j reads: the stream before it and what its block of the backbone gave."""
        stream = self.seen[START] if j == 0 else given[0]
        gate = torch.sigmoid(self.gates[j] / TEMPERATURE)
        return (gate * stream + (1 - gate) * self.downs[j + 1](self.seen[self.layers[j]]), *given[1:])

    # ---- on the backbone ------------------------------------------------------------------------------------------------

    def hook(self, decoder: nn.Module) -> None:
        """Have the decoder speak through this network."""
        blocks = sharding.blocks(decoder)
        self.handles = [decoder.register_forward_pre_hook(self.before), blocks[0].register_forward_pre_hook(self.keep_start),
                        *(blocks[i].register_forward_hook(partial(self.keep, i)) for i in self.layers),
                        decoder.register_forward_hook(self.speak, with_kwargs=True)]

    def unhook(self) -> None:
        for handle in self.handles:
            handle.remove()

    def before(self, decoder: nn.Module, given: tuple[Any, ...]) -> None:
        """The backbone is always in evaluation mode: its dropout would change what the side network reads."""
        if decoder.training:
            decoder.eval()

    def keep_start(self, block: nn.Module, given: tuple[Any, ...]) -> None:
        self.seen = {START: given[0]}

    def keep(self, i: int, block: nn.Module, given: tuple[Any, ...], out: Any) -> None:
        self.seen[i] = out[0] if isinstance(out, tuple) else out

    def speak(self, decoder: nn.Module, given: tuple[Any, ...], told: dict[str, Any], out: Any) -> Any:
        """The decoder's output, with the side network's states in place of its own."""
        if any(t.requires_grad for t in self.seen.values()):
            raise UserError("lst: something in the backbone, or its input, asks for gradients, so that its activations would all "
                            "be kept; nothing but the side network may be trained.")
        past = out.past_key_values if told.get("use_cache") is not False else None
        out.last_hidden_state = self(told, None if past is None else self.side_cache(past, len(sharding.blocks(decoder))))
        self.seen = {}
        return out

    def side_cache(self, past: Any, blocks: int) -> DynamicCache:
        """The side network's keys and values: layers behind the backbone's in its cache, so that what reorders or cuts that one
        does so to them."""
        if not isinstance(past, DynamicCache):
            raise UserError(f"lst: text can be generated with a DynamicCache, not with a {type(past).__name__}.")
        if len(past.layers) == blocks:
            past.layers.extend(DynamicCache(config=self.side.config).layers)
        cache = DynamicCache(config=self.side.config)
        cache.layers = past.layers[blocks:]
        return cache
