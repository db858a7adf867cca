"""Mix-LN: the first quarter of a decoder's blocks normalizes behind the residual sum (Post-LN), the others before it (Pre-LN).

"Mix-LN: Unleashing the Power of Deeper Layers by Combining Pre-LN and Post-LN" (arXiv 2412.13795). For block i of L, counted
from 0, with x [.., width] its input and N_a, N_f its two norms,

    i < floor(post_ln L):   x <- N_a(x + attention(x)),        x <- N_f(x + mlp(x))          Post-LN
    the others:             x <- x + attention(N_a(x)),        x <- x + mlp(N_f(x))          Pre-LN, as the model has it

Under Pre-LN the deep blocks get the smaller gradients, under Post-LN, says the paper, the early ones; mixed, they are more alike.
Every block has the two norms that it had, with their gains, and the final norm stays, so that there are as many parameters as
before; residual sums are not scaled and weights start as they did. ``post_ln = 1`` is Post-LN throughout, ``post_ln = 0`` leaves
the model as it is. A share that would come to no block at all (a quarter of 3) is an error.

The authors train with Adam at 1e-3 (71 M to 250 M parameters) or 5e-4, a warm-up of 10 %, no clipping, and start embeddings at
a deviation of 0.63, all variants alike; transformers starts them at 0.02 (``initializer_range``), so that the first block, which
is not normalized before, reads small numbers.

It cannot be folded in. The artifact has all weights, under their own names, in ``backbone/``, and the wiring in ``adapter/``;
later stages, evaluation and ``generate`` load both, transformers alone does not, and merging refuses it.
Not for a model that is trained already, for which it computes something else; nor for shallow ones, where it changes little.
Early Post-LN blocks make training less steady: "The Curse of Depth in Large Language Models" (arXiv 2502.05795) reports that it
diverged at 350 M and 1 B parameters, where the Mix-LN paper reports gains up to 7 B. Start with a lower rate and a warm-up.

Errors: blocks that are not Pre-LN with two norms (parallel or scaled residuals, four norms). Where the model has weights, it is
run on two tokens to find out.
"""
from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from trainwright.core.bench import Bench
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery
from trainwright.pretrain._post_norm import PostNorm, parts_of_blocks, prove

NAME = "post_norm"
"""The wiring, on a block: a module without parameters."""


class MixLn(Surgery):
    """Turns the first blocks of a Pre-LN decoder into Post-LN blocks."""

    post_ln: float = 0.25
    """Share of the blocks, from the first, that are Post-LN."""
    neutral: ClassVar[bool] = False
    folds: ClassVar[bool] = False
    bench: ClassVar[Bench | None] = Bench(
        suite="pretrain", claim="a perplexity of 26.07 where Pre-LN has 26.73 (130 M parameters), 21.39 for 21.92 (250 M)",
        search={"adamw.lr": [2e-3, 6e-3, 1.8e-2]}, versus="Pre-LN",
        scale="its gain comes from deep blocks: the paper has 12 to 32 of them, the suite 4")
    example: ClassVar[dict[str, Any]] = {"post_ln": 0.5}
    off: ClassVar[dict[str, Any] | None] = {"post_ln": 0.0}

    def __post_init__(self) -> None:
        if not 0 <= self.post_ln <= 1:
            raise ValueError(f"post_ln must be a share between 0 and 1, not {self.post_ln}.")

    def early(self, blocks: int) -> int:
        """How many blocks are Post-LN."""
        count = math.floor(self.post_ln * blocks + 1e-9)
        if self.post_ln and not count:
            raise UserError(f"mix_ln: post_ln = {self.post_ln} of {blocks} blocks is not a single one: take "
                            f"{math.ceil(1e3 / blocks) / 1e3} or more, or a deeper model.")
        return count

    def claims(self, model: nn.Module) -> set[str]:
        blocks = parts_of_blocks(model)
        chosen = list(blocks.items())[:self.early(len(blocks))]
        return {f"{name}.{norm}.*" for name, parts in chosen for norm in (parts.first, parts.second)}

    def operate(self, model: nn.Module, ctx: Context) -> None:
        blocks = parts_of_blocks(model)
        if early := self.early(len(blocks)):
            prove(model, blocks)
        for name, parts in list(blocks.items())[:early]:
            block = model.get_submodule(name)
            block.add_module(NAME, PostNorm(block, parts))

    def fold(self, model: nn.Module) -> None:
        """Takes the wiring out: what is left is the plain Pre-LN model of these weights, another function."""
        for name, wiring in [(n, m) for n, m in model.named_modules() if isinstance(m, PostNorm)]:
            wiring.undo()
            delattr(model.get_submodule(name.rpartition(".")[0]), NAME)

    def save_delta(self, model: nn.Module, folder: Path) -> None:
        """No file of its own: the wiring follows from the settings, and all weights are those of the plain model."""
        folder.mkdir(parents=True, exist_ok=True)

    def load_delta(self, model: nn.Module, folder: Path) -> None:
        """Nothing to read."""
