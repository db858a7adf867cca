"""Readers of documents wait for whoever takes the rows: the engine alone would read a whole table ahead of him, into memory."""
from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
AHEAD = 64 << 20
"""Bytes that the readers of this process may have read since the taker was last seen waiting."""
IDLE, PATIENCE = 0.004, 60.0
"""Seconds after which a taker counts as waiting, and after which a reader goes on anyway (a table may be left half taken)."""

_takers: list[list[float]] = []
"""Since when the taker of each running table has been waiting, the latest table last; infinity while he is at work on rows."""
_read = [0]


def taken(batches: Iterable[T]) -> Iterator[T]:
    """``batches``; it is known when their taker is at work on one."""
    since = [time.monotonic()]
    _takers.append(since)
    try:
        for batch in batches:
            since[0] = math.inf
            yield batch
            since[0] = time.monotonic()
    finally:
        _takers[:] = [one for one in _takers if one is not since]


async def paced(size: int) -> None:
    """What a reader awaits behind each batch of ``size`` bytes. On a cluster, where nobody takes rows in the reader's own
    process, it goes on at once."""
    _read[0] += size
    if _read[0] <= AHEAD:
        return
    until, waiting = time.monotonic() + PATIENCE, 0.0
    while _takers and time.monotonic() < until and waiting < IDLE:
        await asyncio.sleep(IDLE)                       # the taker may run on the same loop: what is there for him goes first
        waiting = time.monotonic() - _takers[-1][0] if _takers else IDLE
    _read[0] = 0
