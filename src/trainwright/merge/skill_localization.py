"""Skill localization: graft the few weights that carry what a fine-tune has learned onto the base.

"Task-Specific Skill Localization in Fine-tuned Language Models" (arXiv 2302.06600). With base W_0, fine-tuned
W_1 and a mask gamma over all weights together:

    W = W_0 + gamma (W_1 - W_0),    gamma = b + (1 - 2 b) sigmoid(S - 10)

b is 1 for the ``density`` of the weights that moved most, over the whole model; S, drawn from 0 to 1, is
trained by plain gradient descent on the task's loss at W, so that any weight may change sides:

    S <- S - lr (1 - 2 b) sigmoid'(S - 10) (dL/dW) (W_1 - W_0)

After each pass over ``sample`` the mask is rounded and its loss on the same rows measured; the best rounded
mask is what is grafted (that of movement alone among them), and its loss and size are shown. Without
``from.data``, or with ``passes = 0``, the mask is that of movement. Nothing is trained afterwards.

lr must be huge, as sigmoid'(-10) is 5e-5. Embeddings, norms and head (``only``) keep the base's weights, as
in the authors' setting. Of several models each has a mask of its own, on its own domain of ``sample``, and
their grafts add up. Left out: the choice by validation score; calibration and continual learning, which
are comparisons. Not for tasks whose skill sits in embeddings. Errors: no
base; a number of domains that is not that of the models.
"""

from __future__ import annotations

import fnmatch
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Arithmetic, Batch, Tensors
from trainwright.core.settings import Endless
from trainwright.families.tensors import Reader
from trainwright.lm.losses import token_losses
from trainwright.merge._data import Sample, loaded
from trainwright.merge._ranks import TaskVectors, check_first, cut_off
from trainwright.merge._tensors import the_base

Rows = list[tuple[Batch, float]]
"""Batches, and what a token of them counts."""
SHIFT = 10
"""How far the scores begin below the middle of the sigmoid."""


class SkillLocalization(Arithmetic):
    """Grafts a small part of a fine-tuned model's weights onto its base."""

    density: float = 0.01
    """Share of the weights that the mask of movement has, of those in ``only``."""
    passes: int = 10
    """Times that the scores are trained on all of ``sample``."""
    lr: Endless = 1e7
    """Learning rate of the scores."""
    sample: Sample = Sample()
    """What the mask is trained on."""
    only: tuple[str, ...] = ("*.self_attn.*", "*.attn.*", "*.attention.*", "*.mlp.*")
    """Globs of the tensors that may be grafted."""
    example: ClassVar[dict[str, Any]] = {
        "density": 0.1, "passes": 1, "only": ("*",), "sample": {"rows": 4, "length": 32}
    }

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1 or self.passes < 0:
            raise ValueError(f"density = {self.density} must be above 0 and at most 1, and passes = "
                             f"{self.passes} not below 0.")

    def prepare(self, ctx: Context) -> None:
        vectors = TaskVectors(ctx, self.name)
        self.sample.check(len(vectors.models), self.name)
        names = [n for n in vectors.names if any(fnmatch.fnmatchcase(n, glob) for glob in self.only)]
        if not names:
            raise UserError(f"{self.name}: only = {list(self.only)} names no tensor of the model.")
        total = sum(vectors.base.entry(n).numel for n in names)
        ctx.memory[self.name] = []
        for i, model in enumerate(vectors.models):
            cut = cut_off(lambda i=i: (held[i] for held in vectors.magnitudes(names)), total, self.density)
            masks = {n: (model.get(n).float() - vectors.base.get(n).float()).abs() >= cut for n in names}
            if self.passes and ctx.inputs.get("data"):
                masks = self.trained(i, masks, model, ctx)
            ctx.memory[self.name].append(masks)

    def combine(self, name: str, tensors: list[Tensor], base: Tensor | None, ctx: Context) -> Tensor:
        base = the_base(base, self.name)
        held = ctx.memory[self.name]
        check_first(len(held), len(tensors), self.name)
        grafted = base.clone()
        for masks, tensor in zip(held, tensors, strict=True):
            if name in masks:
                grafted += (tensor - base).mul_(masks[name].view(base.shape))
        return grafted

    def trained(self, number: int, masks: Tensors, tuned: Reader, ctx: Context) -> Tensors:
        """The best of the rounded masks of one model, by their loss."""
        model = next(loaded(ctx.inputs["base"], ctx, self.name))
        held = {n: p for n, p in model.named_parameters() if n in masks}
        start = {n: p.detach().clone() for n, p in held.items()}
        moves = {n: tuned.get(n).float().to(p.device) - start[n] for n, p in held.items()}
        signs = {n: 1 - 2 * masks[n].float().to(p.device) for n, p in held.items()}
        scores = {n: torch.rand(p.shape, generator=ctx.rng(f"{self.name}/{number}/{n}", at=0)).to(p.device)
                  for n, p in held.items()}
        rows = self._rows(model, number, ctx)
        best, least, lines = masks, self.loss(model, start, moves, masks, rows, ctx), []
        lines.append(f"movement alone: {_count(masks):,} weights, loss {least:.4f}")
        for turn in range(self.passes):
            self.step(model, start, moves, signs, scores, rows, ctx)
            rounded = {n: _soft(s, scores[n]) >= 0.5 for n, s in signs.items()}
            loss = self.loss(model, start, moves, rounded, rows, ctx)
            lines.append(f"after pass {turn + 1}: {_count(rounded):,} weights, loss {loss:.4f}")
            if loss < least:
                best, least = {n: m.cpu() for n, m in rounded.items()}, loss
        ctx.show(f"rounded masks of model {number + 1}", "\n".join(lines))
        return best

    def step(self, model: nn.Module, start: Tensors, moves: Tensors, signs: Tensors, scores: Tensors,
             rows: Rows, ctx: Context) -> None:
        """One step of the scores, on the gradient of all rows at the soft mask."""
        _graft(model, start, moves, {n: _soft(s, scores[n]) for n, s in signs.items()})
        model.zero_grad(set_to_none=True)
        for batch, share in rows:
            (token_losses(model, batch, ctx).sum() * share).backward()
        for n, p in model.named_parameters():
            if n in scores and p.grad is not None:
                soft = torch.sigmoid(scores[n] - SHIFT)
                scores[n] -= self.lr * signs[n] * soft * (1 - soft) * p.grad * moves[n]
        model.zero_grad(set_to_none=True)

    @torch.no_grad()
    def loss(self, model: nn.Module, start: Tensors, moves: Tensors, masks: Tensors, rows: Rows,
             ctx: Context) -> float:
        """The mean loss a token of a rounded mask."""
        _graft(model, start, moves, {n: masks[n].to(m.device) for n, m in moves.items()})
        return sum(float(token_losses(model, b, ctx).sum()) * share for b, share in rows)

    def _rows(self, model: nn.Module, number: int, ctx: Context) -> Rows:
        batches = list(self.sample.of(model, number, ctx))
        tokens = sum(int((b["targets"] >= 0).sum()) for b in batches)
        return [(b, 1 / max(1, tokens)) for b in batches]


def _soft(signs: Tensor, scores: Tensor) -> Tensor:
    """The mask gamma, of the signs 1 - 2 b and the scores S."""
    return (1 - signs) / 2 + signs * torch.sigmoid(scores - SHIFT)


@torch.no_grad()
def _graft(model: nn.Module, start: Tensors, moves: Tensors, masks: Tensors) -> None:
    for n, p in model.named_parameters():
        if n in moves:
            p.copy_(start[n] + masks[n] * moves[n])


def _count(masks: Tensors) -> int:
    return sum(int(m.sum()) for m in masks.values())
