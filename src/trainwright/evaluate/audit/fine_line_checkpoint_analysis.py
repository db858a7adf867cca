"""Whether a small model's checkpoints tell what a larger one will learn: their curves, skill by skill.

"The Fine Line: Navigating Large Language Model Pretraining with Down-streaming Capability Analysis" (arXiv
2404.01204) evaluates every checkpoint of several models and finds that some metrics have one dynamic at all
sizes. Here skills are the domains of a corpus, and the metric is the loss. The curves of both runs are put on
the places x that both cover, and

    dynamics/DOMAIN      Pearson's correlation of the increments of the two curves
    dynamics_p/DOMAIN    the share of curves with the same increments in another order that agree as well
    settled/all          the first place from which the small run ranks the domains as the large one ends
    rank_agreement/PLACE Spearman's correlation of the domains' losses, small run there, large run at its end

Two curves that both fall agree anyway: the second number is what tells a common dynamic from that. With few
checkpoints it cannot be small (1 / orders of n increments).

``from.snapshots`` are checkpoints of the large run and ``from.small`` those of the small one, each named by
its share of training (``base@0.1``), so that runs of other lengths meet; nothing is extrapolated. Which
domains foretell must be chosen on other runs than those it is shown on. Tasks and sizes of the paper (up to
67 billion parameters) are left out.

Not with fewer than five checkpoints, or where both runs have other data or schedules.

Errors: fewer than three common places; snapshots without a number.
"""
from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.stage import MODELS, Role
from trainwright.evaluate.audit._curve import label
from trainwright.evaluate.audit._stream import Held, known_domains, loaded

ORDERS = 2000
"""Orders of increments that are tried."""


class FineLineCheckpointAnalysis(Evaluator):
    """Measures how alike the curves of two runs are, by domain, and from when one ranks domains as the other
    ends."""

    domains: tuple[str, ...] = ()
    """Domains; by default all of the corpus."""
    held: Held = Held()
    """What is measured."""
    roles: ClassVar[dict[str, Role]] = {"snapshots": MODELS._replace(needed=True),
                                        "small": MODELS._replace(needed=True)}
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("loss/*", "dynamics*/*", "settled/all", "rank_agreement/*")
    example: ClassVar[dict[str, Any]] = {"held": {"tokens": 100, "length": 32, "batch_size": 4}}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        domains = known_domains(self.domains, ctx, self.name)
        out = {f"loss/{d}": loss for d, loss in self.held.losses(model, domains, ctx).items()}
        if not (ctx.inputs.get("snapshots") and ctx.inputs.get("small")):
            return out
        large, small = (self._curves(role, domains, ctx) for role in ("snapshots", "small"))
        return out | alike(large, small, domains, ctx)

    def _curves(self, role: str, domains: tuple[str, ...], ctx: Context) -> np.ndarray:
        """[places, 1 + domains]: where each checkpoint is, and its losses."""
        rows = []
        for name, one in loaded(role, ctx, self.name):
            if (at := label(name)) is None:
                raise UserError(f"fine_line_checkpoint_analysis: from.{role} names {name}: checkpoints are "
                                "named by where they are, such as base@0.1.")
            rows.append([at, *self.held.losses(one, domains, ctx).values()])
        return np.array(sorted(rows))


def alike(large: np.ndarray, small: np.ndarray, domains: tuple[str, ...], ctx: Context) -> dict[str, float]:
    """The numbers of two tables, [places, 1 + domains]."""
    from scipy.stats import spearmanr
    x = np.unique(np.concatenate([large[:, 0], small[:, 0]]))
    x = x[(x >= max(large[0, 0], small[0, 0])) & (x <= min(large[-1, 0], small[-1, 0]))]
    if len(x) < 3:
        raise UserError(f"fine_line_checkpoint_analysis: the two runs have {len(x)} places in common, from "
                        f"{max(large[0, 0], small[0, 0]):g} to {min(large[-1, 0], small[-1, 0]):g}; it takes "
                        "three.")
    out = {}
    for j, domain in enumerate(domains, 1):
        a, b = (np.diff(np.interp(x, t[:, 0], t[:, j])) for t in (large, small))
        out[f"dynamics/{domain}"] = found = _correlation(a, b)
        rng = ctx.rng(f"fine_line/{domain}", at=0)
        others = [_correlation(a, b[torch.randperm(len(b), generator=rng).numpy()]) for _ in range(ORDERS)]
        out[f"dynamics_p/{domain}"] = (1 + sum(o >= found - 1e-12 for o in others)) / (1 + ORDERS)
    if len(domains) > 1:
        final, settled = large[-1, 1:], 0.0
        for row in small[::-1]:
            if not (np.argsort(row[1:]) == np.argsort(final)).all():
                break
            settled = float(row[0])
        out["settled/all"] = settled
        for row in small:
            out[f"rank_agreement/{row[0]:g}"] = float(spearmanr(row[1:], final).statistic)
    return out


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's, 0 where one does not vary."""
    a, b = a - a.mean(), b - b.mean()
    size = float((a @ a) * (b @ b)) ** 0.5
    return float(a @ b) / size if size > 0 else 0.0
