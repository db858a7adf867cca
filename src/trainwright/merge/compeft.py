"""ComPEFT: of what a model has learned keep the largest entries, and of those the signs, times one number.

"ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization"
(arXiv 2311.13171). With tau_i = W_i - W_base, flattened over the whole model, and sigma_i the standard
deviation of all its entries, before anything is dropped:

    tau'_ij = alpha sigma_i sign(tau_ij)  where |tau_ij| is among the ``density`` largest, else 0
    W       = W_base + sum_i w_i tau'_i    (w_i = 1/n by default)

Beside the merged weights lies, for each model, the file that one would send instead of it,
``compeft-NUMBER.bin``: positions as a Golomb code of their gaps, signs, and the number (``merge/_ternary.py``
reads it). Its bytes are shown beside those of bfloat16 weights and the entropy bound
d H(k) + k d + 16 bits. Entries as large as the last that is kept are kept too, as in the authors' code.

alpha is to be tuned on validation data with ``density``; the paper finds 1 good for large models. Left out:
adapters, whose factors the paper compresses themselves: what is compressed here is the weights' difference.
Not for changes that are small everywhere alike. Errors: no base; it stands behind another method.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.method import Arithmetic
from trainwright.merge import _ternary
from trainwright.merge._ranks import TaskVectors, check_first
from trainwright.merge._tensors import one_each, the_base, weighted_sum


class Code(NamedTuple):
    """What stands for a task vector, but for the places."""

    cut: float
    """The smallest magnitude that is kept."""
    number: float
    """What each kept entry becomes, but for its sign."""


class Compeft(Arithmetic):
    """Replaces task vectors by signs of their largest entries and one number each."""

    density: float = 0.2
    """Share of each task vector's entries that is kept."""
    alpha: float = 1.0
    """Factor of the standard deviation that kept entries become."""
    weights: tuple[float, ...] = ()
    """Weight of each model's compressed task vector, in the order of from.models; 1/n each by default."""
    entrywise: ClassVar[bool] = True
    example: ClassVar[dict[str, Any]] = {"density": 0.3, "alpha": 1.5}

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or not self.alpha > 0:
            raise ValueError(
                f"density = {self.density} must be above 0 and at most 1, and alpha = {self.alpha} above 0."
            )

    def prepare(self, ctx: Context) -> None:
        vectors = TaskVectors(ctx, self.name)
        cuts = vectors.cuts(self.density, by_tensor=False)["*"]
        codes = [Code(cut, self.alpha * s) for cut, s in zip(cuts, deviations(vectors), strict=True)]
        ctx.memory[self.name] = codes

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base, codes = the_base(base, self.name), ctx.memory[self.name]
        check_first(len(codes), len(tensors), self.name)
        weights = one_each(self.weights, len(tensors), self.name)
        signs = [signed(t - base, code) for t, code in zip(tensors, codes, strict=True)]
        return weighted_sum(signs, [w * c.number for w, c in zip(weights, codes, strict=True)]).add_(base)

    def leave(self, folder: Path, ctx: Context) -> None:
        vectors, codes = TaskVectors(ctx, self.name), ctx.memory[self.name]
        lines = []
        for i, code in enumerate(codes):
            kept = 0

            def pieces(i: int = i, code: Code = code) -> Iterator[Tensor]:
                nonlocal kept
                for held in vectors.pieces():
                    made = signed(held[i], code)
                    kept += int(made.count_nonzero())
                    yield made
            size = _ternary.write(folder / f"compeft-{i}.bin", code.number, vectors.numel, pieces())
            bound = _ternary.entropy_bytes(vectors.numel, kept)
            lines.append(f"compeft-{i}.bin: {kept:,} of {vectors.numel:,} entries, {size:,} bytes; bfloat16 "
                         f"{2 * vectors.numel:,}, entropy bound {bound:,.0f}")
        ctx.show("compressed task vectors", "\n".join(lines))


def signed(vector: Tensor, code: Code) -> Tensor:
    """-1, 0 and 1 for the entries of a task vector."""
    return vector.sign().masked_fill_(vector.abs() < code.cut, 0)


def deviations(vectors: TaskVectors) -> list[float]:
    """The standard deviation of the entries of each task vector, the unbiased one."""
    total, squares = (torch.zeros(len(vectors.models), dtype=torch.float64) for _ in range(2))
    for held in vectors.pieces():
        total += torch.stack([v.double().sum() for v in held])
        squares += torch.stack([v.double().square().sum() for v in held])
    n = vectors.numel
    variance = (squares - total.square() / n) / max(1, n - 1)
    return [float(v) for v in variance.clamp(min=0).sqrt()]
