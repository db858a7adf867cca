"""The gap and the bins by hand, and of a model that is calibrated by construction."""
from __future__ import annotations

import numpy as np
import pytest

from trainwright.core.context import Context
from trainwright.evaluate.audit._calibration import calibration, curve
from trainwright.evaluate.audit._texts import Told


def said(top: list[float], right: list[bool]) -> Told:
    """Of one text the probability of the likeliest token at each place, and whether it is the one there."""
    best = np.log(np.array(top))
    none = np.zeros(0)
    return Told(np.zeros(len(top), int), np.where(right, best, best - 1), none, none, np.zeros(0, int), best)


def test_by_hand() -> None:
    told = calibration([said([0.9, 0.5], [True, False]), said([0.7, 0.7], [True, True])], Context(), "x")
    assert told["gap"] == pytest.approx((0.9 + 0.5 + 0.7 + 0.7 - 3) / 4) and told["tokens"] == 4
    assert told["ece"] == pytest.approx((0.1 + 0.5 + 0.3 + 0.3) / 4), "ten bins, a token each"
    [first, *_] = curve([said([0.2, 0.9], [False, True])])
    assert first == {"confidence": pytest.approx(0.2), "right": 0.0, "tokens": 1.0}


def test_a_calibrated_model_has_no_gap() -> None:
    draw = np.random.default_rng(0)
    texts = []
    for _ in range(200):
        top = draw.uniform(0.1, 1, 30)
        texts.append(said(top.tolist(), (draw.random(30) < top).tolist()))
    told = calibration(texts, Context(), "x")
    assert told["low"] < 0 < told["high"] and told["ece"] < 0.03 and told["high"] - told["low"] < 0.04
