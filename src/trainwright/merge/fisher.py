"""Fisher merging: average models, each weight by how sure each model is of it.

"Merging Models with Fisher-Weighted Averaging" (arXiv 2111.09832). The likeliest weights under Gaussian
posteriors around each model, whose precision is the diagonal of its Fisher information:

    F_i = E_x E_{y ~ p_i(y | x)} (d log p_i(y | x) / dW)^2,    W = sum_i w_i F_i W_i / sum_i w_i F_i

entry by entry (w_i = 1/n by default). x are rows of ``from.data``, of which ``sample`` says how many, and of
which domain for each model; the targets y are drawn from the model itself, one draw a token, so that F is the
Fisher information and not the square of training gradients. ``floor`` (of the mean of all models' F) is added
to each F: where no model has any, the result is the average. Tensors that are no parameters are averaged.

It holds as many numbers as all models have together, in float32. Not for models that were trained apart from
the start. Errors: no ``from.data``; weights or domains that are not one each.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.method import Arithmetic, Batch, Tensors
from trainwright.core.stage import CORPUS, Role
from trainwright.lm.losses import token_losses
from trainwright.merge._data import Sample, loaded
from trainwright.merge._tensors import one_each, weighted_sum


class Fisher(Arithmetic):
    """Averages models by the diagonals of their Fisher information."""

    sample: Sample = Sample()
    """What the models look at."""
    weights: tuple[float, ...] = ()
    """Weight of each model, in the order of from.models; equal by default."""
    floor: float = 1e-6
    """What is added to each Fisher information, as a share of the mean of all."""
    roles: ClassVar[dict[str, Role]] = {"data": CORPUS._replace(needed=True)}
    example: ClassVar[dict[str, Any]] = {"sample": {"rows": 4, "length": 32}}

    def prepare(self, ctx: Context) -> None:
        folders = ctx.inputs["models"]
        self.sample.check(len(folders), self.name)
        found = [self.information(m, i, ctx) for i, m in enumerate(loaded(folders, ctx, self.name))]
        numbers = sum(t.numel() for one in found for t in one.values())
        mean = float(sum(t.double().sum() for one in found for t in one.values())) / max(1, numbers)
        ctx.memory[self.name] = found, max(self.floor * mean, torch.finfo(torch.float32).tiny)

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        weights = one_each(self.weights, len(tensors), self.name)
        found, floor = ctx.memory[self.name]
        if len(found) != len(tensors) or name not in found[0]:
            return weighted_sum(tensors, [w / sum(weights) for w in weights])
        shares = [w * (one[name] + floor) for w, one in zip(weights, found, strict=True)]
        total = torch.stack(shares).sum(0)
        merged = torch.zeros_like(tensors[0])
        for share, tensor in zip(shares, tensors, strict=True):
            merged.addcmul_(share / total, tensor)
        return merged

    def information(self, model: nn.Module, number: int, ctx: Context) -> Tensors:
        """The diagonal of a model's Fisher information, by parameter: a row is an x."""
        parameters = dict(model.named_parameters())
        found = {n: torch.zeros_like(p) for n, p in parameters.items()}
        rows = 0
        for batch in self.sample.of(model, number, ctx, batch=1):
            drawn = self.answered(model, batch, ctx.rng(f"{self.name}/{number}/{rows}", at=0))
            model.zero_grad(set_to_none=True)
            token_losses(model, drawn, ctx).sum().backward()
            for n, p in parameters.items():
                if p.grad is not None:
                    found[n].addcmul_(p.grad, p.grad)
            rows += 1
        model.zero_grad(set_to_none=True)
        return {n: t.div_(max(1, rows)).cpu() for n, t in found.items()}

    @staticmethod
    @torch.no_grad()
    def answered(model: nn.Module, batch: Batch, draw: torch.Generator) -> Batch:
        """The batch with targets that the model itself has drawn, where there were targets."""
        places = {"position_ids": batch["position_ids"]} if families.takes_positions(model) else {}
        logits = model(input_ids=batch["input_ids"], use_cache=False, **places).logits.float().cpu()
        chances = F.softmax(logits, -1).flatten(0, -2)
        said = torch.multinomial(chances, 1, generator=draw).view(batch["targets"].shape)
        targets = batch["targets"]
        return {**batch, "targets": torch.where(targets >= 0, said.to(targets.device), targets)}
