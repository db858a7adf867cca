"""Rows of a step: cut into micro-batches, put together again; and the numbers noted along the way."""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.claims import name_all
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Data, State

if TYPE_CHECKING:
    from trainwright.core.context import Context


def pull(methods: Sequence[tuple[str, Data]], states: dict[str, State], ctx: Context) -> Batch:
    """A batch through the data methods, each of which pulls from the one before it.

    Raises:
        UserError: the first pulls although there is none before it, or one does not pull, so that those
            before it do nothing.
    """
    made: list[str] = []

    def source() -> Batch:
        raise UserError(
            "the first data method pulled from the one before it: it must make batches, not change them."
        )

    def link(key: str, method: Data, before: Callable[[], Batch]) -> Batch:
        made.append(key)
        return method.next(before, states[key], ctx)
    for key, method in methods:
        source = partial(link, key, method, source)
    batch = source()
    # later, one may repeat what it had
    idle = [key for key, _ in methods if key not in made] if ctx.step == 0 else []
    if idle:
        name = next(m.name for k, m in methods if k == made[-1])
        raise UserError(
            f"{name} makes batches of its own, so that {', '.join(idle)} before it would do nothing: leave "
            f"one out."
        )
    return batch


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch's rows in equal parts; what is not a tensor goes along uncut."""
    if parts == 1:
        return [batch]
    rows = {len(t) for t in batch.values() if isinstance(t, Tensor)}
    if any(r % parts for r in rows):
        raise UserError(
            f"accumulate = {parts} does not divide the {max(rows)} rows that each rank has in a step."
        )
    return [
        {n: t.chunk(parts)[i] if isinstance(t, Tensor) else t for n, t in batch.items()} for i in range(parts)
    ]


def join(batches: list[Batch]) -> Batch:
    """All rows of a step, of all micro-batches and ranks."""
    def rows(name: str) -> Tensor:
        mine = torch.cat([b[name] for b in batches])
        return torch.cat([t.to(mine.device) for t in sharding.gather(mine.cpu())])
    return {n: rows(n) if isinstance(v, Tensor) else v for n, v in batches[0].items()}


def collect(notes: dict[str, list[tuple[Any, float]]]) -> dict[str, float]:
    """Each note's weighted mean over the micro-batches and ranks that made it. ``loss`` is a mean over
    ranks of whole steps."""
    mine = {k: [(float(v), float(w)) for v, w in pairs] for k, pairs in notes.items()}
    every: dict[str, list[tuple[float, float]]] = {}
    for part in sharding.gather(mine):
        for k, pairs in part.items():
            every.setdefault(k, []).extend(pairs)
    return {
        k: sum(v * w for v, w in pairs) / total
        for k, pairs in sorted(every.items())
        if (total := sum(w for _, w in pairs))
    }


class Calibration:
    """Batches to look at before training, the same each time they are gone through: ``for
    batch in ctx.batches()``.

    Args:
        methods: the data methods of the stage; their states here are not those of the run.
        rows: how many, over all ranks; as many whole steps as that takes.
    """

    def __init__(self, methods: Sequence[Data], ctx: Context, rows: int) -> None:
        self.named, self.ctx, self.rows = name_all(methods), ctx, rows

    def __call__(self) -> Iterator[Batch]:
        before = self.ctx.step
        states = {key: m.init(self.ctx.policy, self.ctx) for key, m in self.named}  # type: ignore[arg-type]
        try:
            for number in range(-(-self.rows // max(1, self.ctx.batch_rows))):
                self.ctx.step = number
                batch = pull(self.named, states, self.ctx)  # type: ignore[arg-type]
                yield {n: t.to(self.ctx.device) if isinstance(t, Tensor) else t for n, t in batch.items()}
        finally:
            self.ctx.step = before
