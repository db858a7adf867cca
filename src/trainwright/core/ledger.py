"""What a stage costs: tokens, FLOPs, seconds, memory."""
from __future__ import annotations

import ctypes
import os
import resource
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.flops import DENSE
from trainwright.core.method import UNTRAINED, Batch


class Ledger:
    """Sums over the steps of a stage; saved with the checkpoint, so that an interrupted stage counts on."""

    def __init__(self) -> None:
        self.tokens = 0.0
        self.trained_tokens = 0.0
        self.flops = 0.0
        self.seconds = 0.0
        self.peak_memory = 0.0
        self.flops_per_token = 0.0
        """Where steps are compiled, which hides what they compute: counted on one that was not."""
        self.recent: list[float] = []
        """FLOPs of the last steps that were counted."""
        reset_peak()

    def row(
        self, ctx: Context, batches: list[Batch], seconds: float, flops: float | None = None
    ) -> dict[str, float]:
        """Count one step and report it: the row of ``metrics.jsonl``. ``flops`` are this rank's,
        None where not counted; those of ``ctx.apart`` are among them."""
        tokens = trained = 0
        for b in batches:
            t = b.get("targets", b.get("input_ids"))
            if isinstance(t, Tensor):
                tokens += t.numel()
                trained += int((t != UNTRAINED).sum())
            for name in (n for n in b if n.endswith("_targets")):    # of several texts in a row: no padding
                tokens += int(b[name.removesuffix("targets") + "attention_mask"].sum())
                trained += int((b[name] != UNTRAINED).sum())
        tokens, trained = (
            (int(sharding.total(x)) for x in (tokens, trained)) if sharding.world() > 1 else (tokens, trained)
        )
        self.tokens += tokens
        self.trained_tokens += trained
        self.seconds += seconds
        self.flops += self._flops(None if flops is None else flops - ctx.apart, tokens)
        self.flops += sharding.total(ctx.apart) if ctx.apart else 0.0
        self.peak_memory = max(self.peak_memory, peak_memory())
        return {"step": ctx.step, "steps": ctx.steps, "tokens": self.tokens, "flops": self.flops,
                "seconds": round(self.seconds, 4), "tokens_per_second": round(tokens / max(seconds, 1e-9), 1),
                "memory_bytes": memory()}

    def _flops(self, counted: float | None, tokens: int) -> float:
        """Of one step, on all ranks."""
        if counted is not None:
            self.recent = [*self.recent, sharding.total(counted)][-DENSE:]
            return self.recent[-1]
        return sum(self.recent) / len(self.recent) if self.recent else self.flops_per_token * tokens

    def save(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def load(self, saved: dict[str, Any]) -> None:
        self.__dict__.update({name: saved[name] for name in self.__dict__})


def memory() -> float:
    """Bytes in use now: on the GPU where there is one, else resident in this process."""
    if torch.cuda.is_available():
        return float(torch.cuda.memory_allocated())
    try:
        return float(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def reset_peak() -> None:
    """Start a new peak, so that a stage is not charged with the one before it; glibc would
    keep what that has freed."""
    with suppress(OSError, AttributeError):                # another C library
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    # not Linux, or not allowed: the peak is then the process' own
    except OSError:
        return


def peak_memory() -> float:
    """The most bytes in use since ``reset_peak``."""
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return float(status.partition("VmHWM:")[2].split()[0]) * 1024
