"""How far weights have moved, by layer: |W - W0| / |W0| over the matrices of each block."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import nn

BLOCK = re.compile(r"(?:^|\.)(\d+)\.")
"""The number of a block in the name of a parameter."""


def drift(before: nn.Module, after: nn.Module) -> list[dict[str, Any]]:
    """For each block, and for what is in none of them, the length of the move against that of the weights,
    and the share of the entries that moved; in the order of the model. Nothing where a parameter of one has
    no partner of its shape in the other."""
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    if old.keys() != new.keys() or any(old[n].shape != new[n].shape for n in old):
        return []
    sums: dict[str, list[float]] = {}
    for name, weight in old.items():
        found = BLOCK.search(name)
        where = f"block {found[1]}" if found else name.removesuffix(".weight").rpartition(".")[2]
        a, b = weight.detach().double(), new[name].detach().double()
        moved = torch.stack([(b - a).square().sum(), a.square().sum(), (a != b).sum().double()]).tolist()
        kept = sums.setdefault(where, [0.0, 0.0, 0.0, 0.0])
        sums[where] = [s + x for s, x in zip(kept, [*moved, float(a.numel())], strict=True)]
    return [
        {"where": where, "move": (far / long) ** 0.5 if long else 0.0, "moved": changed / many}
        for where, (far, long, changed, many) in sums.items()
    ]
