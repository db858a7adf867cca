"""Curves of one dynamic are told from curves that merely fall; places are shared, nothing is extrapolated."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.corpus.corpora import build, texts
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.evaluate.audit._stream import Held
from trainwright.evaluate.audit.fine_line_checkpoint_analysis import FineLineCheckpointAnalysis, alike


def test_one_dynamic_is_told_from_two_curves_that_fall() -> None:
    x = np.linspace(0.1, 1.0, 10)
    steps = np.array([0.1, 0.1, 1.0, 0.1, 0.8, 0.1, 0.1, 0.5, 0.1])
    jumps = np.concatenate([[6.0], 6 - steps.cumsum()])
    even = np.linspace(6, 3, 10) + 0.01 * np.cos(np.arange(10) * 2.0)
    large = np.stack([x, jumps, jumps - 1], 1)
    told = alike(large, np.stack([x, jumps + 0.5, even], 1), ("same", "other"), Context())
    assert told["dynamics/same"] == pytest.approx(1.0) and told["dynamics_p/same"] < 0.05
    assert told["dynamics_p/other"] > 0.05, "both fall, and that is all"
    assert np.corrcoef(jumps, even)[0, 1] > 0.9, "though their values are correlated"


def test_rankings_settle_and_places_are_shared() -> None:
    large = np.array([[0.2, 5.0, 4.0, 3.0], [0.6, 4.0, 3.0, 2.0], [1.0, 3.0, 2.0, 1.0]])
    small_ = np.array([[0.1, 3.0, 4.0, 5.0], [0.4, 6.0, 5.0, 5.5], [0.5, 6.0, 5.0, 4.0],
                       [0.9, 5.0, 4.0, 3.0]])
    told = alike(large, small_, ("a", "b", "c"), Context())
    assert told["settled/all"] == 0.5
    assert told["rank_agreement/0.1"] == pytest.approx(-1) and told["rank_agreement/0.9"] == pytest.approx(1)
    with pytest.raises(UserError, match="2 places in common"):
        alike(large[:1].repeat(2, 0) + [[0, 0, 0, 0], [0.01, 0, 0, 0]], small_[:2] + [[0.1, 0, 0, 0]],
              ("a", "b", "c"), Context())


def test_of_real_models(tmp_path: Path) -> None:
    build(tmp_path / "c", [row for domain in ("x", "y") for row in texts(16, domain)], tune=0.1, test=0.4)
    for seed in range(4):
        small(seed=seed).save_pretrained(tmp_path / f"m{seed}")
    every = [tmp_path / f"m{seed}" for seed in range(4)]
    names = [f"m@{x}" for x in (0.1, 0.3, 0.6, 1.0)]
    ctx = Context(inputs={"data": [tmp_path / "c"], "snapshots": every, "small": every},
                  names={"snapshots": names, "small": names})
    told = FineLineCheckpointAnalysis(held=Held(tokens=100, length=20)).measure(small(), ctx)
    assert told["dynamics/x"] == pytest.approx(1) and told["rank_agreement/1"] == pytest.approx(1)
    ctx.names["small"] = ["m"] * 4
    with pytest.raises(UserError, match="named by where they are"):
        FineLineCheckpointAnalysis(held=Held(tokens=100, length=20)).measure(small(), ctx)
