"""Low-rank compensation (LoRC): quantize a matrix, and add the best low-rank approximation of the error.

"ZeroQuant-V2: Exploring Post-training Quantization in LLMs from Comprehensive Study to Low Rank Compensation"
(arXiv 2303.08302). With Q(W) [out, in] of rounding to nearest or of GPTQ, and the singular value
decomposition W - Q(W) = U S V^T cut to its ``rank`` largest values,

    W' = Q(W) + (U S^(1/2)) (S^(1/2) V^T).

Nothing of that rank is closer to W by squared error, and no data is used beside what Q uses. Both factors are
rounded to float16. The page of the run says how many bits a weight takes as bits, scales, zeros (32 bits a
scale) and factors; the checkpoint holds the sum W' as floating-point numbers. Weights that a mask removes
stay zero.

To compare at equal bytes, give the plain quantizer smaller groups. Left out are factors in 8 bits and the
quantization of activations. Not for narrow layers, of which rank 8 is a large part. Errors: as of
``round_nearest`` and ``gptq``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright.compress.gptq import GPTQ
from trainwright.core.context import Context
from trainwright.core.method import ParamMap, Surgery
from trainwright.core.settings import Count
from trainwright.lm import second_order
from trainwright.lm.layers import as_linear_weight
from trainwright.lm.quantized import Quantizer

SCALE_BITS, FACTOR_BITS = 32, 16


class ZeroquantV2(Quantizer, Surgery):
    """Quantized weights with a low-rank correction of their error."""

    rank: Count = 8
    """Singular values that are kept; a layer with fewer outputs or inputs keeps all."""
    quantizer: Literal["round_nearest", "gptq"] = "round_nearest"
    """What makes Q(W); ``gptq`` looks at data."""
    example: ClassVar[dict[str, Any]] = {"rank": 2}

    @torch.no_grad()
    def operate(self, model: nn.Module, ctx: Context) -> ParamMap | None:
        layers = self.found(model)
        bits = weights = 0.0
        for name, near in self._rounded(model, ctx, layers):
            weight = as_linear_weight(layers[name])
            left, right = self.factors(weight.float() - near)
            free = second_order.held(model, name, layers[name])
            weight.copy_((near + left @ right).masked_fill(~free, 0))
            grids = weight.numel() / (self.group_size or weight.shape[1])
            bits += self.bits * weight.numel() + FACTOR_BITS * (left.numel() + right.numel())
            bits += grids * (SCALE_BITS + (0 if self.symmetric else self.bits))
            weights += weight.numel()
        ctx.show(f"{self.name}/bits",
                 f"{bits / weights:.2f} bits a weight with scales, zeros and factors, were they stored "
                 "apart; the checkpoint holds their sum as floating-point numbers.")
        return None

    def factors(self, error: Tensor) -> tuple[Tensor, Tensor]:
        """[out, rank] and [rank, in], float16 values in float32, whose product is nearest to ``error``."""
        u, s, v = torch.linalg.svd(error.float(), full_matrices=False)
        root = s[:self.rank].sqrt()
        return (u[:, :self.rank] * root).half().float(), (root[:, None] * v[:self.rank]).half().float()

    def _rounded(self, model: nn.Module, ctx: Context, layers: dict[str, nn.Module]
                 ) -> Iterator[tuple[str, Tensor]]:
        """Each layer and its Q(W); of a block only once the ones before it are corrected."""
        if self.quantizer == "round_nearest":
            for name, layer in layers.items():
                weight = as_linear_weight(layer)
                yield name, self.grid_of(weight).nearest(weight)
            return
        gptq, sizes = GPTQ(bits=self.bits, symmetric=self.symmetric, group_size=self.group_size), []
        for seen in second_order.looked_at(model, ctx, self.name, layers):
            free = second_order.held(model, seen.name, seen.layer)
            sizes.append((seen.name, len(seen.gram), seen.positions))
            yield seen.name, gptq.solve(as_linear_weight(seen.layer).float(), seen.gram, free)[0]
        second_order.say_how_few(ctx, self.name, sizes)
