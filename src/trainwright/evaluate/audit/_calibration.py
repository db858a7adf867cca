"""Whether a model is as often right as it is sure: of the likeliest next token, on text it has not read.

    confidence = probability of the likeliest token,  right = whether it is the one there
    gap = mean(confidence - right)
    ece = sum over bins (tokens of the bin / tokens) |mean of confidence - right|

in bins of equally many tokens. A gap above 0 is a model that is too sure. Its interval is of 95 %, a
bootstrap over documents, as the tokens of one are not independent. ``ece`` is never 0 of few tokens, even of
a perfectly calibrated model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.evaluate.audit._texts import Told

BINS = 10


def calibration(told: Sequence[Told], ctx: Context, key: str) -> dict[str, Any]:
    """``gap`` with ``low`` and ``high``, and ``ece``."""
    apart = np.array([float((np.exp(one.top) - (one.logp >= one.top)).sum()) for one in told])
    sizes = np.array([len(one.logp) for one in told])
    draws = torch.randint(len(apart), (1000, len(apart)), generator=ctx.rng(f"calibration/{key}", at=0))
    spread = apart[draws.numpy()].sum(1) / sizes[draws.numpy()].sum(1)
    low, high = np.quantile(spread, [0.025, 0.975])
    bins = curve(told)
    ece = sum(b["tokens"] * abs(b["confidence"] - b["right"]) for b in bins) / sizes.sum()
    return {
        "gap": float(apart.sum() / sizes.sum()),
        "low": float(low),
        "high": float(high),
        "ece": float(ece),
        "tokens": int(sizes.sum()),
    }


def curve(told: Sequence[Told]) -> list[dict[str, float]]:
    """Confidence and share of right tokens, by bins of rising confidence."""
    confidence: NDArray[np.float64] = np.exp(np.concatenate([one.top for one in told]))
    right = np.concatenate([one.logp >= one.top for one in told])
    order = np.argsort(confidence, kind="stable")
    return [
        {
            "confidence": float(confidence[part].mean()),
            "right": float(right[part].mean()),
            "tokens": float(len(part)),
        }
        for part in np.array_split(order, BINS)
        if len(part)
    ]
