"""Rows packed once: row i holds the same text in every epoch, so it can be drawn, counted and scored.

``pack`` packs anew in each epoch. For methods that deal with single examples, the rows of its first epoch are
the examples.
"""
from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.lm.rows import Rows


class FixedRows:
    """The rows of a first epoch (``Pack.rows``), numbered from 0, domain after domain."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._ends = self._rows.counts.cumsum()

    def __len__(self) -> int:
        return self._rows.total

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """These rows, in this order."""
        names, domain = list(self._rows.domains), np.searchsorted(self._ends, numbers, side="right")
        within = numbers - (self._ends - self._rows.counts)[domain]
        return self._rows.batch([(names[d], int(i)) for d, i in zip(domain, within, strict=True)])

    def share(self, numbers: NDArray[np.int64], who: str, ctx: Context) -> Batch:
        """This rank's part of a step of these rows.

        Raises:
            UserError: something sets a mixture, which nothing would follow.
        """
        if ctx.knobs.get("mixture"):
            raise UserError(f"{who} draws rows by itself and cannot follow a mixture: drop the method that "
                            "sets one, and name the domains to take in 'domains'.")
        return self.batch(numbers[ctx.rows(len(numbers))])


def step_rows(who: str, ctx: Context) -> int:
    """Rows of a step. Raises a UserError where the stage does not say."""
    if not ctx.batch_rows:
        raise UserError(f"{who}: the stage must say how many rows a step has: batch_tokens or batch_size.")
    return ctx.batch_rows


@lru_cache(maxsize=4)
def shuffled(n: int, seed: int, key: str) -> NDArray[np.int64]:
    """The numbers below ``n`` in an order that seed and key decide; not to be written to."""
    order: NDArray[np.int64] = torch.randperm(n, generator=Context(seed=seed).rng(key, at=0)).numpy()
    order.flags.writeable = False
    return order
