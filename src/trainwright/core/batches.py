"""Rows of a step: cut into micro-batches, put together again; and the numbers noted along the way."""
from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.errors import UserError
from trainwright.core.method import Batch


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch's rows in equal parts; what is not a tensor goes along uncut."""
    if parts == 1:
        return [batch]
    rows = {len(t) for t in batch.values() if isinstance(t, Tensor)}
    if any(r % parts for r in rows):
        raise UserError(f"accumulate = {parts} does not divide the {max(rows)} rows that each rank has in a step.")
    return [{n: t.chunk(parts)[i] if isinstance(t, Tensor) else t for n, t in batch.items()} for i in range(parts)]


def join(batches: list[Batch]) -> Batch:
    """All rows of a step, of all micro-batches and ranks."""
    def rows(name: str) -> Tensor:
        mine = torch.cat([b[name] for b in batches])
        return torch.cat([t.to(mine.device) for t in sharding.gather(mine.cpu())])
    return {n: rows(n) if isinstance(v, Tensor) else v for n, v in batches[0].items()}


def collect(notes: dict[str, list[tuple[Any, float]]]) -> dict[str, float]:
    """Each note's weighted mean over the micro-batches and ranks that made it. ``loss`` is a mean over ranks of whole steps."""
    mine = {k: [(float(v), float(w)) for v, w in pairs] for k, pairs in notes.items()}
    every: dict[str, list[tuple[float, float]]] = {}
    for part in sharding.gather(mine):
        for k, pairs in part.items():
            every.setdefault(k, []).extend(pairs)
    return {k: sum(v * w for v, w in pairs) / total for k, pairs in sorted(every.items()) if (total := sum(w for _, w in pairs))}
