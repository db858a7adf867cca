"""What this machine is good at."""
from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from torch import nn


@cache
def best_precision() -> str:
    """``bf16`` where the hardware multiplies bfloat16 faster than float32."""
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if cpu_flags() & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def decided(asked: str) -> str:
    """A precision that a stage asks for; ``auto`` and ``auto-true`` follow what the hardware is fast at."""
    best = best_precision()
    return {"auto": best, "auto-true": "bf16-true" if best == "bf16" else best}.get(asked, asked)


def set_precision(model: nn.Module, asked: str) -> str:
    """The precision that a stage asks for, decided; for ``bf16-true`` the model's weights are made bfloat16.

    Buffers stay as they are: rotary frequencies in bfloat16 would tell far positions no longer apart.
    """
    precision = decided(asked)
    if precision == "bf16-true":
        for parameter in model.parameters():
            parameter.data = parameter.data.to(torch.bfloat16)
    return precision


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """A context in which modules compute in a precision (``auto`` decided) that their weights do not have.

    A weight is converted where it is used and not kept: with checkpointing, and on shards, a copy of all
    weights would stay until the loss is there.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=False)


@cache
def cpu_flags() -> frozenset[str]:
    """Feature flags of the CPU as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    lines = [line.partition(":")[2] for line in text.splitlines() if line.startswith(("flags", "Features"))]
    return frozenset(lines[0].split()) if lines else frozenset()


def memory_bytes() -> float:
    """Memory that a run may take: the GPU's, or what the system (and the container) has free for us."""
    if torch.cuda.is_available():
        return float(torch.cuda.mem_get_info()[1])
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = float(lines["MemAvailable"].split()[0]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max")
        text = limit.read_text().strip() if limit.is_file() else "max"
        return free if text == "max" else min(free, float(text))
    except (OSError, KeyError, ValueError):
        return float("inf")
