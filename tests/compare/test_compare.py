"""A comparison on real (tiny) training: paired, resumed, reused, failing in part, in processes and on Ray."""

import json
import math
import shutil
import statistics

import pytest

from tests.compare.tiny import Count, comparison, fixed_costs, recipe, spec
from trainwright.compare import costs as costing
from trainwright.compare import execute
from trainwright.compare import spec as specs
from trainwright.compare.arms import Length
from trainwright.compare.compare import Comparison, read
from trainwright.compare.spec import Arm
from trainwright.compare.statistics import paired
from trainwright.core.errors import UserError
from trainwright.life.jobs import jobs
from trainwright.storage.store import Store

pytestmark = pytest.mark.slow  # runs of a tiny model, about a second each
EIGHT = Length({"steps": 8}, 8)


MEASURE = costing.measure


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """One folder for all: what one test ran, the others use again."""
    return tmp_path_factory.mktemp("comparison")


@pytest.fixture(autouse=True)
def cheap_costs(monkeypatch):
    monkeypatch.setattr(costing, "measure", fixed_costs)


def rows(result, arm, metric="loss/code"):
    return next(r for r in result["comparisons"] if r["arm"] == arm and r["metric"] == metric)


def test_arms_are_paired_and_the_figures_are_those_of_the_runs(place):
    result = comparison(place).run()
    losses = {a["name"]: [r["metrics"]["loss/code"] for r in a["runs"]] for a in result["arms"]}
    differences = [x - y for x, y in zip(losses["slow"], losses["full"], strict=True)]
    row, found = rows(result, "slow"), paired(differences)
    assert row["values"] == pytest.approx(differences)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx(
        (found.difference, found.low, found.high)
    )
    # at a hundredth of the learning rate little is learned
    assert row["verdict"] == "worse" and row["p_holm"] < 0.05
    start = losses["full"][0] + result["arms"][0]["runs"][0]["metrics"]["gain/code"]
    for arm in result["arms"]:
        for run in arm["runs"]:
            assert run["metrics"]["gain/code"] == pytest.approx(start - run["metrics"]["loss/code"])
            assert {
                "forgetting/prose",
                "seconds_per_step",
                "peak_memory_bytes",
                "trainable_parameters",
                "stored_bytes",
            } <= set(run["metrics"])
        assert len(arm["curve"]["values"]) == 3 and len(arm["curve"]["tokens"]) == len(
            arm["curve"]["values"][0]
        )
    assert rows(result, "slow", "forgetting/prose")["verdict"] in ("better", "worse", "no difference")
    assert json.loads(json.dumps(result)) == result and math.isfinite(
        result["noise"]["loss/code"]["half_width"]
    )


def test_a_seed_gives_all_arms_the_same_data_and_weights(place):
    c = comparison(place)
    one, two = (c.recipes.run(a, 1, EIGHT) for a in c.spec.arms)
    other = c.recipes.run(c.spec.arms[0], 2, EIGHT)
    seeds = [{s.name: getattr(s, "seed", None) for s in r.stages} for r in (one, two, other)]
    assert seeds[0] == seeds[1] and seeds[0]["adapt"] == 1 and seeds[2]["adapt"] == 2
    keys = [{j.stage.name: j.key for j in jobs(r, c.store)} for r in (one, two, other)]
    assert keys[0]["base"] == keys[1]["base"] == keys[2]["base"], "what comes before is shared by all"
    assert len({k["adapt"] for k in keys}) == 3


def test_what_is_measured_on_the_way_and_in_tuning_never_sees_the_test_documents(place):
    c = comparison(place, tune={"lr": [1e-2, 1e-3]})
    for split in ("test", "tune"):
        recipe = c.recipes.run(c.spec.arms[0], 0, EIGHT, split=split)
        inner = [m for m in recipe.stage("adapt").methods if m["use"] == "held_out"]
        assert inner and all(m["split"] == "tune" for m in inner)
        judged = [m.get("split", "test") for m in recipe.stages[-1].methods]
        assert judged == [split]


def test_run_again_nothing_runs_and_more_seeds_or_arms_reuse_what_ran(place):
    first = comparison(place).run()
    again = comparison(place)
    assert again.run()["comparisons"] == first["comparisons"] and not again.watch.begun
    more = comparison(place, seeds=4)
    assert [r["seed"] for r in more.run()["arms"][0]["runs"]] == [0, 1, 2, 3]
    assert sorted(more.watch.begun) == ["full, seed 3", "slow, seed 3"]
    wider = comparison(place, arms=(*more.spec.arms, Arm(name="lora", add=({"use": "lora", "rank": 2},))))
    wider.run()
    assert sorted(wider.watch.begun) == [f"lora, seed {i}" for i in range(3)]
    assert not list((place / "store").glob("adapt-*")), "weights go once they were measured"


def test_an_interrupted_comparison_goes_on_where_it_was(place):
    comparison(place).run()  # the baseline's runs are there
    arms = (Arm(name="full"), Arm(name="brisk", set={"methods.adamw.lr": 2e-2}))
    stopped = comparison(place, Count(stop_after=2), arms=arms)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    on = comparison(place, arms=arms)
    got = on.run()["comparisons"]
    assert stopped.watch.begun == ["brisk, seed 0", "brisk, seed 1"] and on.watch.begun == ["brisk, seed 2"]
    for file in (place / "store" / "runs").glob("*.json"):
        if json.loads(file.read_text()).get("arm") == "brisk":
            file.unlink()
    anew = comparison(place, arms=arms)
    assert [r["values"] for r in anew.run()["comparisons"]] == [r["values"] for r in got] and len(
        anew.watch.begun
    ) == 3


def test_an_arm_that_fails_is_a_result_and_the_others_go_on(place):
    arms = (
        Arm(name="full"),
        Arm(name="wild", set={"methods.adamw.lr": 1e30}),
        Arm(name="slow", set={"methods.adamw.lr": 1e-4}),
    )
    c = comparison(place, arms=arms)
    result = c.run()
    wild = [r for r in result["comparisons"] if r["arm"] == "wild"]
    assert [r["verdict"] for r in wild] == ["failed"]
    assert "finite" in wild[0]["reason"] or "loss is" in wild[0]["reason"]
    assert rows(result, "slow")["verdict"] == "worse"
    assert next(a for a in result["arms"] if a["name"] == "wild")["failed"]
    assert [x for x in c.watch.failed if x.startswith("wild")]


def test_a_failing_baseline_is_reported(place):
    with pytest.raises(UserError, match="baseline 'wild' fails"):
        comparison(place, arms=(Arm(name="wild", set={"methods.adamw.lr": 1e30}), Arm(name="full"))).run()


def test_every_arm_is_tuned_with_the_same_effort_on_other_seeds(place):
    c = comparison(
        place,
        tune={"lr": [1e-2, 1e-4]},
        arms=(Arm(name="full"), Arm(name="lora", add=({"use": "lora", "rank": 2},))),
    )
    result = c.run()
    assert [len(a["trials"]) for a in result["arms"]] == [2, 2] and result["tuning"]["split"] == "tune"
    assert not set(result["tuning"]["seeds"]) & set(result["seeds"])
    for arm in result["arms"]:
        best = min(arm["trials"], key=lambda t: t["metric"])
        assert arm["chosen"] == best["values"] and arm["at_edge"] == ["adamw.lr"]
        used = next(m for m in arm["stage"]["methods"] if m["use"] == "adamw")
        assert used["lr"] == best["values"]["adamw.lr"]
    assert any("edge" in w for w in result["warnings"])


def test_hopeless_trials_end_early_and_final_runs_never_do(place):
    pytest.importorskip("optuna")
    c = comparison(place, tune={"lr": [1e-2, 1e-5, 1e-6]}, metric="loss/code")
    c.early_stop = True
    result = c.run()
    pruned = [t for a in result["arms"] for t in a["trials"] if t["pruned"]]
    assert pruned and all(t["metric"] is None and t["failed"] is None for t in pruned)
    assert all(r["failed"] is None and r["metrics"]["loss/code"] for a in result["arms"] for r in a["runs"])
    assert result["arms"][0]["chosen"] == {"adamw.lr": 1e-2}
    again = comparison(place, tune={"lr": [1e-2, 1e-5, 1e-6]}, metric="loss/code")
    again.early_stop = True
    assert [a["chosen"] for a in again.run()["arms"]] == [
        a["chosen"] for a in result["arms"]
    ] and not again.watch.begun


def test_an_arm_against_itself_says_no_difference(place, monkeypatch):
    monkeypatch.setattr(costing, "measure", MEASURE)
    c = Comparison(spec(place, aa=True, seeds=5, budget={"tokens": 2048}), Store(place / "store"), Count())
    result = c.run()
    seeds = [[r["seed"] for r in a["runs"]] for a in result["arms"]]
    assert seeds == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], "independent seeds on the two sides"
    assert {
        r["verdict"]
        for r in result["comparisons"]
        if r["metric"] in ("loss/code", "gain/code", "forgetting/prose")
    } == {"no difference"}
    losses = [r["metrics"]["loss/code"] for a in result["arms"] for r in a["runs"]]
    floor = result["noise"]["loss/code"]
    assert floor["source"] == "A/A" and 0 < floor["half_width"] < 10 * statistics.stdev(losses)
    dealt = result["wrong"]["loss/code"]
    assert dealt["runs"] == 10 and dealt["seeds"] == 5 and 0 <= dealt["share"] < 0.3
    beside = comparison(place, seeds=5, budget={"tokens": 2048}).run()
    assert beside["noise"]["loss/code"]["source"] == "A/A", "later comparisons show the noise of the A/A"
    cost, other = (a["ledger"] for a in result["arms"])
    assert cost["flops"] > 0 and cost["seconds_per_step"] > 0
    least = 4 * cost["parameters"] * 2 + cost["state_bytes"]
    assert cost["peak_memory_bytes"] == other["peak_memory_bytes"] > least, "weights, gradients, states, more"


def test_in_processes_the_numbers_are_the_same(place, monkeypatch):
    monkeypatch.setattr(execute, "SECONDS", 0.01)
    here = comparison(place, seeds=2).run()
    shutil.rmtree(place / "store" / "runs")
    c = comparison(place, seeds=2)
    c.jobs = 2
    apart = c.run()
    assert len(c.watch.begun) == 4 and {label for label, _ in c.watch.under} <= set(c.watch.begun)
    assert any(step > 1 for _, step in c.watch.under), "it is told how far they are"
    assert [r["values"] for r in apart["comparisons"] if not r["exact"]] == [
        pytest.approx(r["values"], abs=1e-6) for r in here["comparisons"] if not r["exact"]
    ]


def test_on_ray_the_numbers_are_the_same(place):
    pytest.importorskip("ray")
    here = comparison(place, seeds=2).run()
    shutil.rmtree(place / "store" / "runs")
    c = comparison(place, seeds=2)
    c.jobs, c.engine = 2, "ray"
    assert rows(c.run(), "slow")["values"] == pytest.approx(rows(here, "slow")["values"], abs=1e-6)


def test_a_merge_is_compared_without_a_budget(place):
    file_arms = (
        Arm(name="average"),
        Arm(name="mostly base", set={"methods.interpolate.weights": [0.9, 0.1]}),
    )
    c = comparison(place, arms=file_arms, stage="merged", metric="loss/mean", seeds=2, reseed=["adapt"])
    result = c.run()
    assert rows(result, "mostly base", "loss/mean")["arm_mean"] > 0
    assert result["arms"][0]["ledger"]["steps"] is None and result["budget"]["currency"] == "recipe"
    assert {r["metric"] for r in result["comparisons"]} >= {
        "loss/mean",
        "loss/code",
        "loss/prose",
        "stored_bytes",
    }


@pytest.mark.parametrize("jobs", [1, 2])
def test_what_several_runs_of_a_seed_use_is_made_once(jobs, place, monkeypatch):
    """Two at a time do not make it at once, and none takes it away from the others."""
    arms = (Arm(name="average"), Arm(name="mostly base", set={"methods.interpolate.weights": [0.9, 0.1]}),
            Arm(name="mostly new", set={"methods.interpolate.weights": [0.1, 0.9]}))
    made, store = [], Store(place / "store")
    c = comparison(place, arms=arms, stage="merged", metric="loss/mean", seeds=2, reseed=["adapt"])
    c.jobs = jobs
    monkeypatch.setattr(c.watch, "stage", lambda name, kind, state, told: made.append((name, state)), False)
    before = {f.name for f in store.root.glob("adapt-*")}
    result = c.run()
    assert [len(arm["runs"]) for arm in result["arms"]] == [2, 2, 2]
    assert not any(arm["failed"] or any(r["failed"] for r in arm["runs"]) for arm in result["arms"])
    assert jobs > 1 or made.count(("adapt", "finished")) <= 2, "once for each seed"
    assert {f.name for f in store.root.glob("adapt-*")} <= before, "and it goes with the last of them"


def test_a_transformation_is_compared_like_a_merge(place):
    """Two shares of zeros in what ``adapt`` learned; a seed reaches both it and the compared stage."""
    arms = (
        Arm(name="half", add=({"use": "magnitude", "sparsity": 0.5},)),
        Arm(name="most", add=({"use": "magnitude", "sparsity": 0.9},)),
    )
    file = recipe(place)
    text = file.read_text()
    sparse = '[[stage]]\nname = "sparse"\nkind = "transform"\nfrom = { model = "adapt" }\n'
    sparse += 'methods = [{ use = "magnitude", sparsity = 0.1 }]\n\n'
    file = place / "pruned.toml"
    file.write_text(text.replace('[[stage]]\nname = "merged"', sparse + '[[stage]]\nname = "merged"'))
    settings = {"stage": "sparse", "metric": "loss/mean", "seeds": 2, "reseed": ["adapt"]}
    c = Comparison(specs.load(file, settings, arms), Store(place / "store"), Count())
    assert [c.recipes.run(arms[0], 1, Length()).stage(name).seed for name in ("adapt", "sparse")] == [1, 1]
    result = c.run()
    assert rows(result, "most", "loss/mean")["arm_mean"] > 0 and result["budget"]["currency"] == "recipe"
    assert [len(a["runs"]) for a in result["arms"]] == [2, 2]


def test_a_folder_without_a_result_is_reported(tmp_path):
    with pytest.raises(UserError, match="no comparison has ended here"):
        read(tmp_path)
    for text in ("{", "[]", "[" * 100_000):
        (tmp_path / "result.json").write_text(text)
        with pytest.raises(UserError, match=r"result\.json (holds no JSON|is damaged)"):
            read(tmp_path)


def test_what_is_chosen_anew_for_each_seed_is_there_for_its_costs_and_in_the_result(tmp_path):
    """A selection as an arm: made with each seed, measured on what was kept back, and part of the result."""
    chosen = """
[[stage]]
name = "chosen"
kind = "corpus"
from = { data = "corpus" }
methods = [{ use = "random_subset", share = 0.5 }]
"""
    file = recipe(
        tmp_path, '[compare]\nstage = "adapt"\nmetric = "loss/code"\nseeds = 2\nreseed = ["chosen"]\n'
    )
    text = file.read_text().replace(
        '[[stage]]\nname = "adapt"', chosen.strip() + '\n\n[[stage]]\nname = "adapt"'
    )
    old = 'from = { model = "base", data = "corpus" }\nsteps = 8'
    file.write_text(text.replace(old, old.replace('"corpus"', '"chosen"')))
    arms = [Arm(name="half"), Arm(name="all", at="chosen", add=({"use": "random_subset", "share": 1.0},))]
    result = Comparison(specs.load(file, {}, arms), Store(tmp_path / "store"), Count()).run()
    half, whole = result["arms"]
    assert not half["failed"] and not whole["failed"]
    ((all_documents, kept),) = [
        pair for name, pair in half["selected"]["chosen"]["kept"]["domains"].items() if name == "code"
    ]
    assert 0 < kept < all_documents and "chosen" not in whole["selected"], (
        "where nothing was dropped there is nothing to tell"
    )
    assert len({r["hashes"]["chosen"] for r in half["runs"]}) == 2


def test_the_curve_has_the_mean_over_domains_too():
    at = {"step": 2, "tokens": 8, "flops": 1.0, "seconds": 0.5}
    found = execute.curve(
        [at | {"step": 1, "loss": 9.0}, at | {"eval/loss/code": 2.0, "eval/loss/prose": 4.0, "eval/f1": 0.5}]
    )
    assert found == {
        "step": [2],
        "tokens": [8],
        "flops": [1.0],
        "seconds": [0.5],
        "values": {"loss/code": [2.0], "loss/prose": [4.0], "f1": [0.5], "loss/mean": [3.0]},
    }
    assert execute.curve([at]) is None
