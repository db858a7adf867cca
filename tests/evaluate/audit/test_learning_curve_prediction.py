"""A power law is foretold exactly, a noisy one lies in its interval, and the end is never read."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.audit._curve import Curve, fit, interval, label
from trainwright.evaluate.audit._stream import Held
from trainwright.evaluate.audit.learning_curve_prediction import (
    LearningCurvePrediction,
    places,
    prediction_level,
)
from trainwright.evaluate.held_out import HeldOut


def test_a_power_law_is_found() -> None:
    x = np.array([10.0, 20, 40, 80, 160])
    for truth in (Curve(2.0, 9.0, 0.5), Curve(1.0, 4.0, 1.2)):
        found = fit(x, np.array([truth.at(one) for one in x]))
        assert found.b == pytest.approx(truth.b, rel=0.03)
        assert found.at(640) == pytest.approx(truth.at(640), abs=0.01)
    assert fit(x, np.arange(5.0)).a == 0, "a loss that rises is no such curve"


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    x, truth, draw = np.arange(1.0, 11) * 50, Curve(2.0, 9.0, 0.5), np.random.default_rng(0)
    clean = np.array([truth.at(one) for one in x])
    hits = 0
    for seed in range(30):
        low, high = interval(x, clean + 0.02 * draw.normal(size=10), 1000.0, Context(seed=seed), "d")
        hits += low <= truth.at(1000) <= high
    assert hits >= 25, "0.95 within the noise of 30 draws, and of few points"


def test_the_level_and_the_stop() -> None:
    how = LearningCurvePrediction(threshold=0.05)
    x = np.array([1.0, 2, 4, 8, 16, 32, 64, 128])
    told = how.foretold(x, 2 + 3 * x**-1.0, 256.0, Context(), "d")
    assert told["predicted/d"] == pytest.approx(2 + 3 / 256, abs=5e-3)
    assert told["predicted_level/d"] > 0 and 64 >= told["stop_at/d"] >= 32, "3 / 64 is below 0.05, 3 / 32 not"
    assert how.foretold(x[:3], 5 * x[:3]**-0.05, 256.0, Context(), "d")["stop_at/d"] == 0
    c = [Curve(v, 1.0, 1.0) for v in (-1.0, 0.5, 0.4, 0.6, 0.7)]
    assert prediction_level(c) == 2 and prediction_level(c[:1]) is None
    assert prediction_level([Curve(-1.0, 1.0, 1.0)] * 4) is None


def test_places_of_snapshots() -> None:
    assert [label(n) for n in ("base@500", "base@0.25", "base", "base@best")] == [500.0, 0.25, None, None]
    ctx = Context(names={"snapshots": ["a@0.1", "a@0.2", "a@0.4"]})
    assert places(ctx, None, "x")[1] == 1.0
    three = ["a@1", "a@2", "a@3"]
    for names, at, why in ((three[:2], None, "needs 3"), (["a@1", "a@2", "a@0.3"], 9.0, "not by both"),
                           (three, None, "say with at"), (three, 3.0, "not behind")):
        with pytest.raises(UserError, match=why):
            places(Context(names={"snapshots": names}), at, "x")


def test_of_real_models(tmp_path: Path) -> None:
    names, folders = [], []
    for seed in (1, 2, 3):
        small(seed=seed).save_pretrained(tmp_path / f"m{seed}")
        names, folders = [*names, f"m@{seed / 10}"], [*folders, tmp_path / f"m{seed}"]
    ctx = Context(inputs={"data": [corpus(tmp_path / "c")], "snapshots": folders}, names={"snapshots": names})
    told = LearningCurvePrediction(held=Held(tokens=100, length=20)).measure(small(), ctx)
    one = HeldOut(tokens=100, length=20)
    with torch.no_grad():
        y = np.array([one.measure(small(seed=s), ctx)["loss/d"] for s in (1, 2, 3)])
    assert told["predicted/d"] == pytest.approx(fit(np.array([0.1, 0.2, 0.3]), y).at(1.0))
    assert told["predicted_error/d"] == pytest.approx(told["predicted/d"] - told["loss/d"])
