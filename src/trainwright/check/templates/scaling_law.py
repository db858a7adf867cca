"""TheMethod: what it does, in one line (paper title, arXiv id).

The equation, with shapes and units. When not to use it. Errors that it raises.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Fit, ScalingLaw


class TheMethod(ScalingLaw):
    """What it does, in one line."""

    strength: float = 8.0
    """Tokens of a batch, for each square root of a token of the run."""
    columns: ClassVar[tuple[str, ...]] = ("tokens", "batch_tokens")
    example: ClassVar[dict[str, Any]] = {"strength": 4.0}

    def suggest(self, known: dict[str, float]) -> dict[str, Any]:
        return {"batch_tokens": self.strength * known["tokens"] ** 0.5}

    def fit(self, rows: Sequence[dict[str, Any]], ctx: Context) -> Fit:
        if len(rows) < 4:
            raise UserError(f"{self.name}: {len(rows)} runs are too few: it needs four.")
        found = torch.tensor([row["batch_tokens"] / row["tokens"] ** 0.5 for row in rows])
        draws = torch.randint(len(rows), (500, len(rows)), generator=ctx.rng(f"{self.name}/bootstrap", at=0))
        other = float(found[::2].mean() / found[1::2].mean())
        return Fit(replace(self, strength=float(found.mean())),
                   [replace(self, strength=mean) for mean in found[draws].mean(1).tolist()],
                   {"off on the other half of the runs": abs(other - 1)}, [])

    def made_up(self, ctx: Context) -> list[dict[str, Any]]:
        noise = 1 + 0.05 * torch.randn(16, generator=ctx.rng(f"{self.name}/made_up", at=0))
        tokens = [1e6 * 2.0 ** i for i in range(16)]
        return [{"tokens": n, "batch_tokens": self.strength * n ** 0.5 * x}
                for n, x in zip(tokens, noise.tolist(), strict=True)]
