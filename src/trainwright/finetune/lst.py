"""LST: train a small network beside a frozen one, which reads its hidden states and predicts in its place.

"LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning" (arXiv 2206.06522). Left out:
models with an encoder (the paper's T5), whose two side networks would read one another: here a model has one.
With h_i [.., d] the output of block i of the frozen backbone and e the input of its first block, for each
block i that has a side block,

    s = Down_0(e);   mu_i = sigmoid(a_i / 0.1),   s = Block_i(mu_i s + (1 - mu_i) Down_i(h_i));
    logits = head(Up(norm(s)))

s has d / reduction dimensions, side blocks are of the backbone's kind with all widths divided, Down_i and Up
are linear with a bias, and a_i starts at 0. The head is the frozen one; the backbone's own output is not
added. Gradients flow in the side network alone: the backbone builds no graph, keeps nothing for backward and
runs in evaluation mode (anything else is an error).

``start = "pruned"`` gives the side blocks weights of the backbone: the hidden dimensions of largest
importance (L1 over the embedding's entries of each dimension), one set for all blocks; of the neurons, and of
the dimensions of a head, those of largest importance (L1, the product over the layers that make them: gate
and up, or queries, keys and values together). Where heads turn with positions, a choice is of rotary pairs,
one for all blocks, and the side network turns them by their own angles; where angles depend on the input,
pairs are evenly spaced. Importance is the sum of squared gradients over the last 128
tokens of each of ``samples`` documents of the stage's corpus (the paper takes 1024), or the size of the
weights where there is no corpus. In the paper the dimensions kept carry over from layer to layer. In its
released code each layer that writes to the hidden states chooses its own, so that one stream mixes several
choices, and a head gets dimensions of several heads. Here one choice holds, and all heads of a block keep the
same dimensions.

It cannot be folded in. The artifact has the backbone in ``backbone/`` and the side network in ``adapter/``;
later stages, evaluation and ``generate`` load both, transformers alone does not, and merging refuses it.

Do not use it where memory does not matter (LoRA reaches more with as many parameters), or for speed:
generating costs more than before.

Errors: a reduction that does not divide a width; a layer that does not exist; a model with an encoder; an
architecture that start = "pruned" cannot read.
"""
from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers.cache_utils import DynamicCache

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.lm import deltas
from trainwright.lm.encoder_decoder import has_encoder
from trainwright.lm.pruned import cut_decoder, importance, small_config

FILE = "lst.safetensors"
NAME = "ladder"
"""The side network, on the model itself."""
TEMPERATURE = 0.1
"""Of the gates: sigmoid(a / 0.1)."""
START = -1
"""Stands for the embeddings among the numbers of the blocks."""


class Lst(Surgery):
    """A small trained network beside the frozen model, without backpropagation through that."""

    reduction: int = 8
    """By how much widths are divided."""
    layers: tuple[int, ...] = ()
    """Blocks of the backbone, from 0, that have a side block; none named: all of them."""
    start: Literal["pruned", "random"] = "pruned"
    """Where the side blocks' weights come from."""
    samples: int = 64
    """Documents over which the importance of weights is taken; 0 takes their sizes."""
    dropout: float = 0.0
    """Share of the embeddings and of the last side state that is dropped in training."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    stands_alone: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"reduction": 4, "samples": 4}

    def __post_init__(self) -> None:
        if self.reduction < 1 or self.samples < 0:
            raise ValueError(
                f"reduction must be 1 or more and samples 0 or more, not {self.reduction} and {self.samples}."
            )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {"*"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        if has_encoder(model):
            raise UserError("lst: a model with an encoder needs two side networks, of which one reads the "
                            "other; this method makes one, for a model that has a decoder alone.")
        decoder, config = model.get_decoder(), model.config.get_text_config()
        layers = self.chosen(len(sharding.blocks(decoder)))
        worth = importance(model, self.samples, self.reduction, ctx) if self.start == "pruned" else {}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(ctx.rng("lst", at=0).initial_seed())
            side = type(decoder)(small_config(config, self.reduction, layers))
            ladder = Ladder(side, layers, config.hidden_size, self.dropout)
        if self.start == "pruned":
            cut_decoder(model, side, layers, self.reduction, worth)
        model.requires_grad_(False)
        for table in (m for m in side.modules() if isinstance(m, nn.Embedding)):
            table.requires_grad_(False)  # of tokens and places: the first side block reads Down_0
        model.add_module(NAME, ladder.to(next(model.parameters()).device).train(model.training))
        ladder.hook(decoder)

    def chosen(self, blocks: int) -> list[int]:
        layers = sorted(set(self.layers)) or list(range(blocks))
        if layers[0] < 0 or layers[-1] >= blocks:
            raise UserError(
                f"lst: layers = {list(self.layers)} names a block that is not there: there are 0 to "
                f"{blocks - 1}."
            )
        return layers

    def trained(self, model: nn.Module) -> dict[str, Tensor]:
        return {n: p for n, p in getattr(model, NAME).named_parameters() if p.requires_grad}

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        """What is trained, and the angles of the pairs that were chosen."""
        turns = {n: b for n, b in getattr(model, NAME).named_buffers() if n.endswith("inv_freq")}
        return self.trained(model) | turns

    def fold(self, model: nn.Module) -> None:
        """Takes the side network out: what is left is the backbone, as it was."""
        getattr(model, NAME).unhook()
        delattr(model, NAME)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``lst.safetensors``: everything that is trained, under its name in the side network."""
        deltas.write(self.learned(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.learned(model), folder / FILE)


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

    def forward(self, keywords: dict[str, Any], cache: DynamicCache | None) -> Tensor:
        """Hidden states for the head, [..., wide], from what the backbone's blocks gave (``seen``).

        ``keywords`` are those that the backbone was called with. Where its weights are bfloat16, the side
        network computes in that type.
        """
        kind, device = self.seen[START].dtype, self.seen[START].device.type
        lower = kind != self.up.weight.dtype and not torch.is_autocast_enabled(device)
        with torch.autocast(device, dtype=kind) if lower else nullcontext():
            return self.through(keywords, cache)

    def through(self, keywords: dict[str, Any], cache: DynamicCache | None) -> Tensor:
        start = self.downs[0](F.dropout(self.seen[START], self.dropout, self.training))
        given = {n: keywords[n] for n in ("attention_mask", "position_ids") if n in keywords}
        self.seen[START] = start  # the first side block reads this and nothing added to it
        out = self.side(inputs_embeds=start, past_key_values=cache, use_cache=cache is not None, **given)
        return self.up(F.dropout(out[0], self.dropout, self.training))

    def mix(self, j: int, block: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """What side block j reads: the stream before it and what its block of the backbone gave."""
        stream = self.seen[START] if j == 0 else given[0]
        gate = torch.sigmoid(self.gates[j] / TEMPERATURE)
        return (gate * stream + (1 - gate) * self.downs[j + 1](self.seen[self.layers[j]]), *given[1:])

    # ---- on the backbone -----------------------------------------------------------------------------------

    def hook(self, decoder: nn.Module) -> None:
        """Have the decoder speak through this network."""
        blocks = sharding.blocks(decoder)
        self.handles = [
            decoder.register_forward_pre_hook(self.before),
            blocks[0].register_forward_pre_hook(self.keep_start),
            *(blocks[i].register_forward_hook(partial(self.keep, i)) for i in self.layers),
            decoder.register_forward_hook(self.speak, with_kwargs=True),
        ]

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

    def speak(self, decoder: nn.Module, given: tuple[Any, ...], keywords: dict[str, Any], out: Any) -> Any:
        """The decoder's output, with the side network's states in place of its own."""
        if any(t.requires_grad for t in self.seen.values()):
            raise UserError(
                "lst: something in the backbone, or its input, asks for gradients, so that its activations "
                "would all be kept; nothing but the side network may be trained."
            )
        past = out.past_key_values if keywords.get("use_cache") is not False else None
        out.last_hidden_state = self(
            keywords, None if past is None else self.side_cache(past, len(sharding.blocks(decoder)))
        )
        self.seen = {}
        return out

    def side_cache(self, past: Any, blocks: int) -> DynamicCache:
        """The side network's keys and values: layers behind the backbone's in its cache, so that what
        reorders or cuts that one does so to them."""
        if not isinstance(past, DynamicCache):
            raise UserError(
                f"lst: text can be generated with a DynamicCache, not with a {type(past).__name__}."
            )
        if len(past.layers) == blocks:
            past.layers.extend(DynamicCache(config=self.side.config).layers)
        cache = DynamicCache(config=self.side.config)
        cache.layers = past.layers[blocks:]
        return cache
