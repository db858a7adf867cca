"""LST: train a small network beside a frozen one, which reads its hidden states and speaks in its place.

"LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning" (arXiv 2206.06522). With h_i [.., d] what block
i of the frozen backbone gives and e what its first block reads, for each block i that has a side block,

    s = Down_0(e);   mu_i = sigmoid(a_i / 0.1),   s = Block_i(mu_i s + (1 - mu_i) Down_i(h_i));   logits = head(Up(norm(s)))

s has d / reduction dimensions, side blocks are of the backbone's kind with all widths divided, Down_i and Up are linear with a
bias, a_i starts at 0. The head is the frozen one; the backbone's own output is not added. Gradients flow in the side network
alone: the backbone builds no graph, keeps nothing for backward and runs in evaluation mode (to break this is an error).

``start = "pruned"`` gives the side blocks weights of the backbone's: hidden dimensions of the largest importance (L1 by dimension
of the embedding's), one set for all blocks; neurons of the largest importance (L1, product over the layers that make them); of
each head evenly spaced dimensions, whose rotary angles are those of a head of that size. Importance is the sum of squared
gradients over the last 128 tokens of each of ``samples`` documents of the stage's corpus (the paper takes 1024), or without a
corpus the size of the weights.
The paper carries the dimensions kept from layer to layer; in its released code each layer that writes to the hidden states
chooses its own, so that one stream mixes several choices, and a head gets dimensions of several heads. Here one choice holds.

It cannot be folded in. The artifact has the backbone in ``backbone/`` and the side network in ``adapter/``; later stages,
evaluation and ``generate`` load both, transformers alone does not, and merging refuses it.
Not where memory is no matter (LoRA reaches more with as many parameters), and not for speed: to generate costs more than before.
Errors: a reduction that does not divide; a layer that is not there; an architecture that start = "pruned" cannot read.
"""
from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.finetune._ladder import Ladder
from trainwright.lm import deltas
from trainwright.lm.pruned import cut_decoder, importance, small_config

FILE = "lst.safetensors"
NAME = "ladder"
"""The side network, on the model itself."""


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
    bench: ClassVar[Bench | None] = Bench(
        suite="sft", claim="saves 69 % of the memory of fine-tuning, where LoRA and adapters save 26 %",
        metric="peak_memory_bytes", add=({"use": "lst", "samples": 2},), baseline=({"use": "lora", "rank": 8},), versus="LoRA",
        scale="a side network has to learn to speak first, for which four steps of 256 tokens are too few")
    example: ClassVar[dict[str, Any]] = {"reduction": 4, "samples": 4}

    def __post_init__(self) -> None:
        if self.reduction < 1 or self.samples < 0:
            raise ValueError(f"reduction must be 1 or more and samples 0 or more, not {self.reduction} and {self.samples}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}.")

    def claims(self, model: nn.Module) -> set[str]:
        return {"*"}

    def operate(self, model: nn.Module, ctx: Context) -> None:
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
            table.requires_grad_(False)                               # of tokens and places: the first side block reads Down_0
        model.add_module(NAME, ladder.to(next(model.parameters()).device).train(model.training))
        ladder.hook(decoder)

    def chosen(self, blocks: int) -> list[int]:
        layers = sorted(set(self.layers)) or list(range(blocks))
        if layers[0] < 0 or layers[-1] >= blocks:
            raise UserError(f"lst: layers = {list(self.layers)} names a block that is not there: there are 0 to {blocks - 1}.")
        return layers

    def trained(self, model: nn.Module) -> dict[str, Tensor]:
        return {n: p for n, p in getattr(model, NAME).named_parameters() if p.requires_grad}

    def fold(self, model: nn.Module) -> None:
        """Takes the side network out: what is left is the backbone, as it was."""
        getattr(model, NAME).unhook()
        delattr(model, NAME)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """``lst.safetensors``: everything that is trained, under its name in the side network."""
        deltas.write(self.trained(model), folder / FILE)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        deltas.read(self.trained(model), folder / FILE)
