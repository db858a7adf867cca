"""What the benchmarks share: the facts of a run, and two sides in turn. It imports no library by itself: what
is measured of a process is then not its memory."""
from __future__ import annotations

import datetime
import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any


def say(line: str) -> None:
    print(line, flush=True)


def facts(precision: str = "auto") -> dict[str, Any]:
    """When, where and with what a benchmark ran; the precision is the one that was computed in."""
    import torch

    from trainwright.core import hardware
    from trainwright.storage.versions import describe
    return {"date": datetime.date.today().isoformat(), "hardware": describe(),
            "python": platform.python_version(), "torch": torch.__version__,
            "precision": hardware.decided(precision), "command": " ".join(sys.argv)}


def settle() -> None:
    """Wait for what a GPU still has to do."""
    import torch
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(ratios: list[float]) -> dict[str, float]:
    """The median of paired ratios, the smallest and the largest."""
    return {"ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def paired(
    a: Callable[[], Any], b: Callable[[], Any], pairs: int, steps: int = 1
) -> tuple[float, float, list[float]]:
    """Median seconds of a call of each, and the ratios a/b, pair by pair of ``steps`` calls, in turn
    (A B, B A, A B …)."""
    took: tuple[list[float], list[float]] = ([], [])
    for i in range(pairs):
        for which in ((0, 1), (1, 0))[i % 2]:
            settle()
            began = time.perf_counter()
            for _ in range(steps):
                (a, b)[which]()
            settle()
            took[which].append((time.perf_counter() - began) / steps)
    ratios = [x / y for x, y in zip(*took, strict=True)]
    return statistics.median(took[0]), statistics.median(took[1]), ratios
