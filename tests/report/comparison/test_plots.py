"""Which plots the page has, and what is drawn in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.report.comparison import sample
from trainwright.report.comparison import plots
from trainwright.report.comparison.numbers import read
from trainwright.report.comparison.sentences import lead


def test_band_reaches_from_the_lowest_seed_to_the_highest() -> None:
    result = sample.single()
    values = [[4.0, 3.0, 2.0], [4.0, 3.4, None], [4.0, 3.5, 2.5]]
    result["arms"][1]["curve"] = {"name": "loss/code", "split": "tune", "tokens": [0, 10, 20], "flops": None,
                                  "seconds": [0, 1, 2], "values": values}
    line = plots._line(read(result).arms[1], "tokens")
    assert line is not None and list(line.x) == [0, 10]  # what one seed has not measured is left out for all
    assert (
        np.allclose(line.y, [4.0, 3.3])
        and np.allclose(line.low, [4.0, 3.0])
        and np.allclose(line.high, [4.0, 3.5])
    )
    assert plots._line(read(result).arms[1], "flops") is None


def test_curves_without_any_seed_or_any_arm(tmp_path: Path) -> None:
    result = sample.single()
    for arm in result["arms"]:
        arm["curve"] = None
    assert plots.curves(read(result), tmp_path) == []
    result["arms"][0]["curve"] = {
        "name": "loss/code",
        "split": "tune",
        "tokens": [1],
        "flops": [1],
        "seconds": [1],
        "values": [[None]],
    }
    assert plots.curves(read(result), tmp_path) == []


@pytest.mark.slow
def test_the_budget_s_currency_comes_first(tmp_path: Path) -> None:
    result = sample.single() | {"budget": {"currency": "seconds", "amount": 60}}
    assert [p.picture for p in plots.curves(read(result), tmp_path)] == [
        "curve-seconds.png",
        "curve-tokens.png",
        "curve-flops.png",
    ]
    assert "1 min 00 s of training a run" in lead(
        read(result | {"budget": {"currency": "seconds", "amount": 60.0}})
    ) or "60 s" in lead(read(result))


def test_bars_of_quality_are_those_of_the_difference() -> None:
    result = sample.single()
    one = next(c for c in result["comparisons"] if c["metric"] == "loss/code")
    base, lora = plots._points(read(result), "peak_memory_bytes")
    assert base.low == base.y == base.high == pytest.approx(one["baseline_mean"])
    assert (lora.low, lora.high) == pytest.approx(
        (one["baseline_mean"] + one["low"], one["baseline_mean"] + one["high"])
    )


def test_a_cost_that_is_the_same_for_all_is_not_drawn(tmp_path: Path) -> None:
    found = plots.pareto(read(sample.again()), tmp_path)
    text = "".join(found.drawings) if found else ""
    assert "over trained parameters" not in text and "over peak memory" not in text


def test_where_more_is_better_trials_far_below_are_off_the_axis() -> None:
    result = sample.plain()
    result["arms"][0]["trials"] = [
        {"values": {"t": str(m)}, "metric": m, "failed": None, "pruned": False} for m in (0.1, 0.6, 0.62)
    ]
    assert plots._limits(read(result)) == pytest.approx((0.62 - 1.15 * 0.02, 0.62 + 0.12 * 0.02))


@pytest.mark.slow
def test_values_in_words_and_a_single_value_can_be_drawn(tmp_path: Path) -> None:
    result = sample.single()
    result["arms"][0]["trials"] = [
        {"values": {"kind": k}, "metric": 3.0, "failed": None, "pruned": k == "b"} for k in ("a", "b")
    ]
    result["arms"][1]["trials"] = [{"values": {"lr": 0.0}, "metric": None, "failed": "nan", "pruned": False}]
    found = plots.tuning(read(result), tmp_path)
    assert found is not None and len(found.drawings) == 2
