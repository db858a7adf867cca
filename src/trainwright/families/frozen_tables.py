"""Frozen tables of words in eight bits: what a stage with ``frozen_tables = "int8"`` holds of embeddings and
head that it does not train.

Each row w [H] of a table, a word's, has a scale of its own,

    s = max |w| / 127,    q = round(w / s),    w' = s q,

with q in int8 and s in float32: 8 + 32/H bits a weight. A head that is tied to the embeddings stays tied. The
embeddings of a text make its own rows alone, and the loss reads the head in tiles of words
(``lm/cross_entropy.py``): the whole table is made only where all logits are asked for, as when text is
written. Small models are much of their embeddings: in SmolLM2-135M they are a fifth.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.families.bits import Bits

LARGEST = 127


class EightBits(Bits):
    """A frozen table in eight bits. See ``pack_rows``."""

    codes: Tensor
    """int8 [words, H]."""
    scales: Tensor
    """float32 [words, 1]."""
    many: ClassVar[str] = "eight"
    setting: ClassVar[str] = "frozen_tables"

    @staticmethod
    def __new__(cls, codes: Tensor, scales: Tensor, shape: torch.Size, dtype: torch.dtype,
                turned: bool = False) -> EightBits:
        made: EightBits = Tensor._make_wrapper_subclass(
            cls, shape, dtype=dtype, device=codes.device, requires_grad=False)
        made.codes, made.scales, made.turned = codes, scales, turned
        return made

    def __init__(self, *given: Any) -> None:
        super().__init__()

    def like(self, dtype: torch.dtype | None = None, turn: bool = False) -> EightBits:
        shape = torch.Size(reversed(self.shape)) if turn else self.shape
        return EightBits(self.codes, self.scales, shape, dtype or self.dtype, self.turned ^ turn)

    def held(self) -> dict[str, Tensor]:
        return {"codes": self.codes, "scales": self.scales}

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        whole = self.codes.mul(self.scales).to(dtype or self.dtype)
        return whole.t() if self.turned else whole

    def rows(self, which: slice | Tensor) -> Tensor:
        return self.codes[which].mul(self.scales[which]).to(self.dtype)


def pack_rows(table: Tensor) -> EightBits:
    """A table [words, H] in eight bits."""
    wide = table.detach().float()
    scales = wide.abs().amax(1, keepdim=True).div_(LARGEST).clamp_(min=torch.finfo(torch.float32).tiny)
    return EightBits(wide.div(scales).round_().to(torch.int8), scales, table.shape, table.dtype)


@torch.no_grad()
def freeze_tables(model: nn.Module) -> None:
    """Hold the frozen matrices outside of the model's blocks (embeddings, head) in eight bits, in place.

    Raises:
        UserError: there are none: they are trained.
    """
    inside = {id(m) for block in sharding.blocks(model) for m in block.modules()}
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        weight = module._parameters.get("weight")
        if id(module) in inside or weight is None or weight.ndim != 2 or weight.requires_grad:
            continue
        if id(weight) not in made:
            # of a model that will be cut into shards, each table moves alone
            bits = pack_rows(weight.to(sharding.device()) if sharding.world() > 1 else weight)
            made[id(weight)] = nn.Parameter(bits, requires_grad=False)
        module._parameters["weight"] = made[id(weight)]
    if not made:
        raise UserError('frozen_tables = "int8" is about a table of words that is not trained, and here '
                        "all are: name an adapter, such as lora, or leave it out.")
