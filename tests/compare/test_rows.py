"""Arms against the baseline, metric by metric: who is paired with whom, and by which interval."""

from __future__ import annotations

import pytest

from tests.compare.tiny import Count, spec
from trainwright.compare import rows
from trainwright.compare.compare import Comparison
from trainwright.compare.sequential import anytime
from trainwright.compare.statistics import holm, paired
from trainwright.storage.store import Store

BASE = [1.0, 1.1, 0.9, 1.05]
SLOW = [1.5, 1.62, 1.38, 1.56]


def comparison(tmp_path, **changes):
    c = Comparison(spec(tmp_path, **changes), Store(tmp_path / "store"), Count())
    return c


def runs(base, slow, stored=(7, 9)):
    made = {"full": (base, stored[0]), "slow": (slow, stored[1])}
    out = {}
    for name, (losses, size) in made.items():
        out[name] = [{"metrics": {"loss/code": x, "gain/code": 3 - x, "stored_bytes": size}} for x in losses]
    return out


def test_differences_are_taken_seed_by_seed_and_bytes_as_they_are(tmp_path) -> None:
    loss, gain, stored = rows.comparisons(comparison(tmp_path, seeds=4), runs(BASE, SLOW))
    found = paired([b - a for a, b in zip(BASE, SLOW, strict=True)])
    assert loss["values"] == pytest.approx([b - a for a, b in zip(BASE, SLOW, strict=True)])
    assert (loss["low"], loss["p"], loss["detectable"]) == pytest.approx(
        (found.low, found.p, found.detectable))
    assert loss["baseline_values"] == BASE and loss["verdict"] == "worse" == gain["verdict"]
    assert holm([loss["p"]]) == [loss["p_holm"]]
    assert stored["exact"] and (stored["low"], stored["high"], stored["p"]) == (2, 2, None)


def test_other_numbers_are_compared_where_it_is_said_when_they_are_better(tmp_path) -> None:
    made = runs(BASE, SLOW)
    for run in (run for listed in made.values() for run in listed):
        run["metrics"]["right"] = -run["metrics"]["loss/code"]
    assert "right" not in {r["metric"] for r in rows.comparisons(comparison(tmp_path, seeds=4), made)}
    told = rows.comparisons(comparison(tmp_path, seeds=4, also={"right": "higher"}), made)
    (one,) = [r for r in told if r["metric"] == "right"]
    assert (one["better"], one["verdict"]) == ("higher", "worse") and one["difference"] < 0


def test_a_metric_that_a_run_lacks_has_no_row(tmp_path) -> None:
    made = runs(BASE, SLOW)
    del made["slow"][2]["metrics"]["gain/code"]
    assert [r["metric"] for r in rows.comparisons(comparison(tmp_path, seeds=4), made)] == [
        "loss/code", "stored_bytes"]


def test_a_race_has_intervals_that_allow_to_look_and_arms_with_fewer_seeds(tmp_path) -> None:
    c = comparison(tmp_path, until_decided=True)
    made = runs(BASE, SLOW[:3])
    c.counted = {name: [{"numbers": r["metrics"]} for r in listed] for name, listed in made.items()}
    loss, gain, _ = rows.comparisons(c, made)
    found = anytime([b - a for a, b in zip(BASE, SLOW[:3], strict=False)])
    assert (loss["low"], loss["high"], loss["p"]) == pytest.approx((found.low, found.high, found.p))
    assert len(loss["values"]) == len(loss["baseline_values"]) == 3 and loss["detectable"] is None
    assert loss["verdict"] == "worse" and gain["p"] == pytest.approx(found.p)
    c.counted["slow"] = [{"numbers": {"loss/code": x}} for x in (1.0, 1.2, 0.7)]
    loss, *_ = rows.comparisons(c, runs(BASE, [1.0, 1.2, 0.7]))
    assert loss["verdict"] == "not decided"


def test_an_arm_that_failed_has_one_row(tmp_path) -> None:
    c = comparison(tmp_path, seeds=4)
    c.failed = {"slow": "no memory"}
    (row,) = rows.comparisons(c, runs(BASE, []))
    assert row["verdict"] == "failed" and row["reason"] == "no memory" and row["difference"] is None


def test_the_noise_is_that_of_the_baseline_where_there_was_no_comparison_with_itself(tmp_path) -> None:
    c = comparison(tmp_path, seeds=4)
    c.lengths = {}
    made = runs(BASE, SLOW)
    aa = comparison(tmp_path, seeds=4, aa=True, arms=(c.spec.arms[0],))
    found = rows.noise(aa, {"full": made["full"], "full again": made["full"]},
                       rows.comparisons(aa, {"full": made["full"], "full again": made["full"]}))
    assert found["loss/code"]["source"] == "A/A" and found["loss/code"]["half_width"] > 0
    assert "stored_bytes" not in found
