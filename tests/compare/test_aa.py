"""How often the runs of one arm, dealt to two sides, are told apart."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from trainwright.compare import aa
from trainwright.compare.statistics import paired


def test_the_share_is_that_of_all_ways_to_deal() -> None:
    """Four runs, two a side: all 24 orders, by hand."""
    values = [1.0, 1.01, 2.0, 2.01]
    found = [paired([a - c, b - d]).p < 0.05 for a, b, c, d in itertools.permutations(values)]
    assert 0 < sum(found) < 24
    assert aa.wrong(values, 2, 20_000) == pytest.approx(sum(found) / 24, abs=0.01)


def test_bell_shaped_noise_makes_one_of_twenty_wrong() -> None:
    draw = np.random.default_rng(0)
    shares = [aa.wrong(draw.normal(3, 0.1, 20), deals=400) for _ in range(200)]
    assert np.mean(shares) == pytest.approx(0.05, abs=0.006)


def test_rare_bad_runs_make_it_cautious() -> None:
    one_bad = [1.0 + 0.001 * i for i in range(19)] + [5.0]
    assert aa.wrong(one_bad) < 0.05


def test_it_is_the_same_each_time_and_needs_enough_runs() -> None:
    values = [0.1, 0.3, 0.2, 0.25, 0.5, 0.35, 0.15, 0.4, 0.45, 0.05]
    assert aa.wrong(values) == aa.wrong(values)
    with pytest.raises(ValueError, match="9 runs cannot be dealt to two sides of 5"):
        aa.wrong(values[:9])


def test_it_is_told_for_every_metric_that_has_noise() -> None:
    def side(level):
        return {"runs": [{"metrics": {"loss/code": level + 0.01 * i, "stored_bytes": 7}} for i in range(5)]}

    rows = [{"metric": "loss/code", "exact": False}, {"metric": "stored_bytes", "exact": True},
            {"metric": "seconds_per_step", "exact": False}]
    found = aa.told([side(1.0), side(1.003)], rows)
    assert set(found) == {"loss/code"} and found["loss/code"]["runs"] == 10
    assert 0 <= found["loss/code"]["share"] <= 1 and found["loss/code"]["seeds"] == 5
