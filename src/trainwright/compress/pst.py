"""PST: prune while tuning, by scores that low-rank factors, rows and columns learn.

"Parameter-Efficient Sparsity for Large Language Models Fine-Tuning" (arXiv 2205.11005). With W [out, in] of a
linear layer, frozen, U V [out, rank][rank, in] its change and a score for each weight,

    w = W + U V,    S = |w| + A B + (R 1' + 1 C'),    y = (M * w) x + b,

M is 1 but for the ``sparsity`` of the matrix' weights with the lowest scores. The choice lets gradients
through: with G = dL/d(M w), dL/dS = G w, and dL/dw = G M + G w sign(w), whose second term is that of |w| in
S. U and A [out, score_rank] start normal, V and B [score_rank, in], R [out] and C [in] at zero, so that the
model starts as it was. The share v that is removed grows from nothing by

    v_t = v (1 - (1 - p)^3),    p = the part of the steps from the end of ``warmup`` to ``hold``.

In the end M * w takes the place of W, and M goes with the model as its mask.

The authors convert every linear layer, the classifier's too; here it is those that ``layers`` means, inside
of the blocks. Scores are compared within a matrix. Not for a learning rate that suits LoRA's B: A's and U's
scale is 1. Errors: settings out of range; ``layers`` matches no linear layer, or one that has an adapter.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import State, Surgery, Tensors, Update
from trainwright.core.settings import Count, Part
from trainwright.lm import sparsity
from trainwright.lm.layers import as_linear_weight
from trainwright.lm.reweighted import Reweighted, Reweighting


class PSTLinear(Reweighted):
    """A linear layer of which the weights with the highest scores compute."""

    removed: Tensor
    """The share of the weights that is removed, a scalar."""

    def __init__(self, layer: nn.Module, settings: PST, rng: torch.Generator) -> None:
        super().__init__(layer, settings)
        wide, high, device = self.in_features, self.out_features, self.weight.device

        def pair(rank: int) -> tuple[nn.Parameter, nn.Parameter]:
            first, second = torch.randn(high, rank, generator=rng), torch.zeros(rank, wide)
            return nn.Parameter(first.to(device)), nn.Parameter(second.to(device))

        self.pst_U, self.pst_V = pair(settings.rank)
        self.pst_A, self.pst_B = pair(settings.score_rank)
        self.pst_R = nn.Parameter(torch.zeros(high, 1, device=device))
        self.pst_C = nn.Parameter(torch.zeros(1, wide, device=device))
        self.register_buffer("removed", torch.zeros((), device=device))

    def weights(self) -> Tensor:
        """w [out, in], none of them removed."""
        return as_linear_weight(self).float() + self.pst_U @ self.pst_V

    def scores(self, weights: Tensor) -> Tensor:
        return weights.abs() + self.pst_A @ self.pst_B + self.pst_R + self.pst_C

    def mask(self, scores: Tensor) -> Tensor:
        """bool [out, in], true where a weight is kept."""
        return sparsity.keep(scores.detach(), float(self.removed), "", rows=False)

    def matrix(self) -> Tensor:
        weights = self.weights()
        scores = self.scores(weights)
        return weights * (self.mask(scores) + (scores - scores.detach()))


class PST(Reweighting, Surgery, Update):
    """Surgery: scored layers. Update: how much of them is removed."""

    sparsity: Part = 0.5
    """Share of the weights of each layer that is removed in the end."""
    rank: Count = 8
    """Rank of the change of the weights."""
    score_rank: Count = 8
    """Rank of the learned part of the scores."""
    warmup: Part = 0.1
    """Share of the steps before anything is removed."""
    hold: Part = 0.2
    """Share of the steps, the last ones, in which nothing more is."""
    params: ClassVar[str] = "*.pst_*"  # type: ignore[misc]
    reads_grads: ClassVar[bool] = False
    puts: ClassVar[type[Reweighted]] = PSTLinear
    example: ClassVar[dict[str, Any]] = {"rank": 2, "score_rank": 2, "warmup": 0.3, "hold": 0.3}

    def __post_init__(self) -> None:
        if self.warmup + self.hold >= 1:
            raise ValueError(f"warmup = {self.warmup} and hold = {self.hold} leave no steps in which more is "
                             "removed; together they must be below 1.")

    def made(self, model: nn.Module, name: str, layer: nn.Module, ctx: Context) -> Reweighted:
        return PSTLinear(layer, self, ctx.rng(f"pst/{name}", at=0))

    def share(self, step: int, steps: int) -> float:
        """What is removed at a step."""
        begin, end = self.warmup * steps, (1 - self.hold) * steps
        part = min(max((step - begin) / max(end - begin, 1.0), 0.0), 1.0)
        return self.sparsity * (1 - (1 - part) ** 3)

    def settle(self, params: Tensors, state: State, ctx: Context) -> None:
        assert ctx.policy is not None
        for layer in self.mine(ctx.policy).values():
            layer.removed.fill_(self.share(ctx.step, ctx.steps))

    @torch.no_grad()
    def fold(self, model: nn.Module) -> None:
        kept = {n: layer.mask(layer.scores(layer.weights())) for n, layer in self.mine(model).items()}
        super().fold(model)
        for name, mask in kept.items():
            sparsity.prune(model, name, model.get_submodule(name), mask)

    def learned(self, model: nn.Module) -> dict[str, Tensor]:
        removed = {f"{n}.removed": layer.removed for n, layer in self.mine(model).items()}
        return super().learned(model) | removed
