"""A comparison at several sizes: how they are written, what is tuned where, what becomes of the effect."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.compare.tiny import Count, fixed_costs, recipe, spec
from trainwright.compare import costs as costing
from trainwright.compare import ladder
from trainwright.compare import spec as specs
from trainwright.compare.arms import Length
from trainwright.compare.compare import Comparison
from trainwright.compare.spec import Arm, Ladder, Size
from trainwright.core.errors import UserError
from trainwright.storage.store import Store

HEAD = """
[compare]
stage = "adapt"
metric = "loss/code"
seeds = 2
points = 0

[compare.ladder]
sizes = [
  { name = "S" },
  { name = "M", set = { "base.model.hidden_size" = 32, "adapt.steps" = 10 } },
  { name = "L", set = { "base.model.hidden_size" = 64, "adapt.steps" = 12 }, budget = { tokens = 2048 } },
]
"""
ARMS = (Arm(name="full"), Arm(name="slow", set={"methods.adamw.lr": 1e-4}))


def three(tmp_path, **changes):
    return specs.load(recipe(tmp_path, HEAD), changes, ARMS)


def comparison(tmp_path, one):
    return Comparison(one, Store(tmp_path / "store"), Count())


# ---- how sizes are written ------------------------------------------------------------------------------


def test_each_size_is_the_recipe_with_what_is_larger_in_it(tmp_path) -> None:
    found = ladder.sizes(three(tmp_path))
    assert [size.name for size, _ in found] == ["S", "M", "L"]
    widths = [one.stage_table("base")["model"]["hidden_size"] for _, one in found]
    steps = [one.stage_table("adapt")["steps"] for _, one in found]
    assert widths == [16, 32, 64] and steps == [8, 10, 12]
    assert [one.settings.budget for _, one in found] == [{}, {}, {"tokens": 2048}]
    runs = [comparison(tmp_path, one).recipes.run(ARMS[0], 0, Length()) for _, one in found]
    assert [run.stage("base").model["hidden_size"] for run in runs] == [16, 32, 64]


def test_what_is_no_ladder_is_refused(tmp_path) -> None:
    whole = three(tmp_path)

    def sizes(made: Ladder | None, **changes):
        return ladder.sizes(replace(whole, settings=replace(whole.settings, ladder=made, **changes)))

    a, b, c = (Size(name=n) for n in "abc")
    with pytest.raises(UserError, match=r"needs a table \[compare.ladder\]"):
        sizes(None)
    with pytest.raises(UserError, match="has 2 sizes; a trend needs 3"):
        sizes(Ladder(sizes=(a, b)))
    with pytest.raises(UserError, match="two sizes are called 'a'"):
        sizes(Ladder(sizes=(a, a, c)))
    with pytest.raises(UserError, match="without --until-decided"):
        sizes(Ladder(sizes=(a, b, c)), until_decided=True)
    with pytest.raises(UserError, match="no stage 'bas'"):
        sizes(Ladder(sizes=(a, b, Size(name="c", set={"bas.model.hidden_size": 3}))))
    with pytest.raises(UserError, match=r"ladder: unknown setting 'size'"):
        spec(tmp_path, ladder={"size": []})


def test_rates_are_only_transferred_by_a_method_that_every_arm_has(tmp_path) -> None:
    with pytest.raises(UserError, match=r"transfer = 'mup', and the arm 'full' does not have that method"):
        ladder.made(three(tmp_path, ladder={"sizes": [{"name": n} for n in "abc"], "transfer": "mup"}),
                    lambda one: comparison(tmp_path, one))


@pytest.mark.slow
def test_rates_that_are_transferred_are_tuned_at_the_smallest_size_alone(tmp_path) -> None:
    """``adamw`` stands in for a method that makes rates the same: all arms have it."""
    sizes = [{"name": n, "set": {"adapt.steps": s}} for n, s in (("a", 8), ("b", 9), ("c", 10))]
    told = {"sizes": sizes, "transfer": "adamw"}
    found = ladder.made(three(tmp_path, ladder=told, tune={"lr": [1e-2, 3e-2]}),
                        lambda one: comparison(tmp_path, one))
    assert [{len(x) for x in c.candidates.values()} for _, c in found] == [{2}, {0}, {0}]
    each = ladder.made(three(tmp_path, ladder={"sizes": sizes}, tune={"lr": [1e-2, 3e-2]}),
                       lambda one: comparison(tmp_path, one))
    assert [{len(x) for x in c.candidates.values()} for _, c in each] == [{2}, {2}, {2}]


# ---- what becomes of an effect --------------------------------------------------------------------------


def result(flops, differences, seconds, failed=None):
    """A result of one arm beside a baseline, as ``assemble`` of a comparison writes it."""
    rows = [
        {"arm": "x", "metric": "loss/code", "better": "lower", "verdict": "better", "values": differences,
         "baseline_values": [2.0] * len(differences)},
        {"arm": "x", "metric": "seconds_per_step", "better": "lower", "verdict": "better",
         "values": [s - 1.0 for s in seconds], "baseline_values": [1.0] * len(seconds)},
    ]
    if failed:
        rows = [{"arm": "x", "metric": "loss/code", "better": "lower", "verdict": "failed", "values": [],
                 "baseline_values": [], "reason": failed}]
    ledger = {"flops": flops, "parameters": 10, "tokens": 100}
    return {"baseline": "base", "arms": [{"name": "base", "ledger": ledger}, {"name": "x", "ledger": {}}],
            "comparisons": rows, "stage": "adapt", "metric": "loss/code", "seeds": [0, 1, 2], "seconds": 1.0,
            "caveats": {"x": []}, "warnings": [], "tuning": None, "date": "", "hardware": "", "versions": {},
            "git": None, "seed": 0}


def test_effects_are_differences_and_of_costs_shares(tmp_path) -> None:
    whole = three(tmp_path)
    sizes = [Size(name=n) for n in "SML"]
    results = [result(10.0**k, [-0.1 * k, -0.1 * k - 0.01, -0.1 * k + 0.01], [0.8, 0.81, 0.79])
               for k in (1, 2, 3)]
    found = ladder.assemble(whole, sizes, results)
    loss, time = found["trends"]
    assert (loss["word"], loss["relative"]) == ("grows", False)
    assert loss["beyond"]["mean"] == pytest.approx(-0.4)
    assert (time["word"], time["relative"]) == ("holds", True)
    assert [p["mean"] for p in time["points"]] == pytest.approx([-0.2] * 3)
    assert found["unit"] == "flops" and [s["scale"] for s in found["sizes"]] == [10, 100, 1000]
    assert "were not tuned at each size" in found["said"]["rates"]
    assert "extrapolation" in found["said"]["beyond"]
    assert json.loads(json.dumps(found)) == found


def test_an_arm_that_fails_at_one_size_has_no_trend(tmp_path) -> None:
    results = [result(10.0**k, [-0.1] * 3, [0.8] * 3, "out of memory" if k == 3 else None) for k in (1, 2, 3)]
    (one,) = ladder.assemble(three(tmp_path), [Size(name=n) for n in "SML"], results)["trends"]
    assert one["word"] == "failed" and "out of memory" in one["reason"] and not one["points"]


def test_sizes_that_do_not_grow_are_refused(tmp_path) -> None:
    results = [result(flops, [-0.1] * 3, [0.8] * 3) for flops in (10.0, 10.0)]
    with pytest.raises(UserError, match="do not grow: flops of the baseline are 10, 10"):
        ladder.scales(three(tmp_path), results)


@pytest.mark.slow
def test_a_ladder_of_real_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(costing, "measure", fixed_costs)
    whole, seen = three(tmp_path), []
    listed = ladder.made(whole, lambda one: comparison(tmp_path, one))
    found = ladder.run(whole, listed, lambda size, one: seen.append((size.name, one["title"])))
    assert [name for name, _ in seen] == ["S", "M", "L"] and seen[0][1].endswith(", S")
    main = found["trends"][0]
    assert main["metric"] == "loss/code" and len(main["points"]) == 3
    assert all(p["mean"] > 0 for p in main["points"]), "at a hundredth of the rate less is learned"
    assert [s["parameters"] for s in found["sizes"]] == sorted(s["parameters"] for s in found["sizes"])
    assert found["sizes"][0]["caveats"]["slow"][0].startswith("untuned")
