"""Seeds are added until all is decided: who stops when, and what is told of it."""

from __future__ import annotations

import pytest

from tests.compare.tiny import Count, comparison, fixed_costs, spec
from trainwright.compare import costs as costing
from trainwright.compare import deciding
from trainwright.compare.sequential import FIRST, anytime
from trainwright.compare.spec import Arm
from trainwright.core.errors import UserError


class Drawn:
    """In place of a comparison: its runs are numbers from a list."""

    def __init__(self, made, losses, jobs=1) -> None:
        self.spec, self.losses, self.jobs, self.failed = made, losses, jobs, {}
        self.asked: list[tuple[str, list[int]]] = []

    def alive(self):
        return [a for a in self.spec.arms if a.name not in self.failed]

    def final(self, arms, seeds):
        seeds = list(seeds)
        self.asked += [(a.name, seeds) for a in arms]
        out = {a.name: [] for a in self.spec.arms}
        for a in arms:
            for s in seeds:
                loss = self.losses[a.name](s)
                why = "it broke" if loss is None else None
                if why:
                    self.failed[a.name] = why
                out[a.name].append({"numbers": {} if why else {"loss/code": loss}, "failed": why})
        return out


ARMS = (Arm(name="base"), Arm(name="far"), Arm(name="near"))
WOBBLE = (0.01, -0.02, 0.015, -0.005, 0.02, -0.01, 0.0, 0.005)


def wobble(level, scale=1.0):
    return lambda seed: level + scale * WOBBLE[seed % 8] * (-1) ** (seed // 8)


def race(tmp_path, losses, jobs=1, **changes):
    settings = {"until_decided": True, "most_seeds": 12, **changes}
    c = Drawn(spec(tmp_path, ARMS, **settings), losses, jobs)
    return c, deciding.run(c)


def test_what_is_decided_stops_and_the_baseline_goes_on(tmp_path) -> None:
    losses = {"base": lambda s: 1.0, "far": wobble(2.0), "near": wobble(1.0)}
    c, records = race(tmp_path, losses)
    seeds = {name: len(found) for name, found in records.items()}
    assert seeds["near"] == seeds["base"] == 12 and FIRST <= seeds["far"] <= 4
    assert c.asked[:3] == [(a.name, [0, 1, 2]) for a in ARMS]
    told = deciding.summary(c.spec, records, c.failed)
    assert told["decided"] == {"far": True, "near": False}
    assert told["runs"] == sum(seeds.values()) and told["fixed_runs"] == 36 and told["most"] == 12


def test_with_a_margin_no_difference_is_decided_too(tmp_path) -> None:
    losses = {"base": lambda s: 1.0, "far": wobble(2.0), "near": wobble(1.0)}
    c, records = race(tmp_path, losses, margin=0.1)
    assert deciding.decided(c.spec, records, {}) == {"far": "worse", "near": "no difference"}
    assert len(records["near"]) < 12 and len(records["base"]) == max(map(len, records.values()))


def test_as_many_seeds_at_a_time_as_there_are_processes(tmp_path) -> None:
    losses = {"base": lambda s: 1.0, "far": wobble(1.0), "near": wobble(1.0)}
    c, _ = race(tmp_path, losses, jobs=6)
    assert [seeds for name, seeds in c.asked if name == "base"] == [
        [0, 1, 2], [3, 4], [5, 6], [7, 8], [9, 10], [11]]


def test_an_arm_that_fails_stops_and_without_a_baseline_all_do(tmp_path) -> None:
    losses = {"base": lambda s: 1.0, "far": lambda s: None, "near": wobble(5.0)}
    c, records = race(tmp_path, losses)
    assert len(records["far"]) == 3 and deciding.decided(c.spec, records, c.failed) == {"near": "worse"}
    c, records = race(tmp_path, losses | {"base": lambda s: None})
    assert {len(found) for found in records.values()} == {3} and "base" in c.failed


def test_too_few_seeds_to_decide_anything_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="most_seeds = 2: nothing can be decided with fewer than 3"):
        spec(tmp_path, until_decided=True, most_seeds=2)
    with pytest.raises(UserError, match="margin"):
        spec(tmp_path, until_decided=True, margin=-1.0)


@pytest.mark.slow
def test_a_race_on_real_runs_ends_early_and_resumes(tmp_path, monkeypatch) -> None:
    """The slow arm learns next to nothing, which three or four seeds show."""
    monkeypatch.setattr(costing, "measure", fixed_costs)
    stopped = comparison(tmp_path, Count(stop_after=3), until_decided=True, most_seeds=6, points=0)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    c = comparison(tmp_path, until_decided=True, most_seeds=6, points=0)
    result = c.run()
    row = next(r for r in result["comparisons"] if r["metric"] == "loss/code")
    n = result["race"]["seeds"]["slow"]
    assert row["verdict"] == "worse" and n < 6 and len(stopped.watch.begun + c.watch.begun) == 2 * n
    seen = anytime(row["values"])
    assert (row["low"], row["high"], row["p"]) == pytest.approx((seen.low, seen.high, seen.p))
    assert result["race"]["decided"] == {"slow": True} and result["race"]["fixed_runs"] == 12
    assert "confidence sequences" in result["said"]["interval"] and "detectable" not in result["said"]
    assert result["caveats"]["slow"][0].startswith("untuned")
