"""Weights that are averaged, documents that are joined, and the rank correlation of what comes of the two."""
from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright.corpus.tokens import Documents

ARRAYS = ("id", "domain", "shard", "offset", "length", "bytes", "trained")


def put(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Copy weights into a model."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(weights[name])


def averaged(models: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The uniform average of weights, in float32 at least."""
    return {n: torch.stack([m[n].to(torch.promote_types(m[n].dtype, torch.float32)) for m in models]).mean(0).to(first.dtype)
            for n, first in models[0].items()}


def part(found: Documents, which: NDArray[np.int64]) -> Documents:
    """Some of the documents, in this order."""
    return Documents(*(getattr(found, name)[which] for name in ARRAYS))


def cut(found: Documents, tokens: int) -> Documents:
    """The first documents that together make so many predictions (there are that many); the last one is cut off."""
    many = int(np.searchsorted((found.length - 1).cumsum(), tokens)) + 1
    out = part(found, np.arange(many))
    out.length[-1] -= int((out.length - 1).sum()) - tokens
    return out


def joined(parts: Sequence[Documents]) -> Documents:
    """The documents of all of them."""
    return Documents(*(np.concatenate([getattr(one, name) for one in parts]) for name in ARRAYS))


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> tuple[float, float, float]:
    """Spearman's, and its 95 % interval by Fisher's z; 0 where one of the two does not vary, -1 to 1 below four pairs."""
    from scipy.stats import spearmanr
    if min(np.ptp(a), np.ptp(b)) == 0:
        return 0.0, -1.0, 1.0
    rho = float(spearmanr(a, b).statistic)
    if len(a) < 4:
        return rho, -1.0, 1.0
    z, spread = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho))), 1.96 * math.sqrt((1 + rho * rho / 2) / (len(a) - 3))
    return rho, math.tanh(z - spread), math.tanh(z + spread)
