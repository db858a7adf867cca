"""Instruction residual: pretrain the base further, then add what instruction tuning had changed of it.

"Balancing Continuous Pre-Training and Instruction Fine-Tuning: Optimizing Instruction-Following in LLMs"
(arXiv 2410.10739). With B the base, I its instruction-tuned release, and C the continued pretraining of B
(``from = { models = ["C", "I"], base = "B" }``):

    W = C + scale (I - B),    scale = 1

on every tensor, without instruction data and without further training. ``base`` is the base of I; C may
descend from another version of it with the same tensors.

A C that was trained from I has the residual already and is refused: it is one that lies nearer to I than to
B. Models of unlike vocabularies are refused by the stage. Errors: no base, or not two models.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic
from trainwright.merge._ranks import TaskVectors
from trainwright.merge._tensors import the_base

NEARER = 0.7
"""Distance to the instruction model over that to the base, below which the former is where a model came from:
it is below 1 / sqrt(2) as soon as it went less far from there than instruction tuning went from the base."""


class InstructionResidual(Arithmetic):
    """Adds the change of an instruction tuning to a model whose base was pretrained further."""

    scale: float = 1.0
    """Factor of the residual; the paper's is 1."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"scale": 0.5}

    def prepare(self, ctx: Context) -> None:
        vectors = TaskVectors(ctx, self.name)
        self._check(len(vectors.models))
        squares = torch.zeros(2, dtype=torch.float64)
        for mine, theirs in vectors.pieces():
            squares += torch.stack([(mine - theirs).square().sum(), mine.square().sum()]).double()
        from_instructions, from_base = squares.sqrt().tolist()
        if from_instructions < NEARER * from_base:
            raise UserError(
                f"{self.name}: the first of from.models lies nearer to the second ({from_instructions:.3g}) "
                f"than to from.base ({from_base:.3g}), so that it has the residual already: pretrain the "
                "base further, not the instruction model."
            )

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base = the_base(base, self.name)
        self._check(len(tensors))
        return (tensors[1] - base).mul_(self.scale).add_(tensors[0])

    def _check(self, models: int) -> None:
        if models != 2:
            raise UserError(
                f"{self.name} takes a model whose base was pretrained further and the instruction model: "
                f"from.models must name 2, not {models}."
            )
