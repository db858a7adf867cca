"""What stands beside a verdict: each caveat where it is true, and nothing where none is."""

from __future__ import annotations

import pytest

from tests.compare.tiny import Count, spec
from trainwright.compare import caveats
from trainwright.compare.compare import Comparison
from trainwright.compare.spec import Arm
from trainwright.storage.store import Store

TWO_RATES = Arm(name="two", add=({"use": "torch_optim", "name": "SGD", "lr": 0.1, "params": "*norm*"},))
ARMS = (Arm(name="full"), Arm(name="slow", set={"methods.adamw.lr": 1e-4}))


def tuned(tmp_path, arms, trials, chosen, **changes):
    """A comparison after its tuning."""
    c = Comparison(spec(tmp_path, arms, **changes), Store(tmp_path / "store"), Count())
    c.trials = {name: [{"values": v, "metric": 1.0, "pruned": False, "failed": None} for v in values]
                for name, values in trials.items()}
    c.chosen = chosen
    return c


def rates(*values):
    return [{"adamw.lr": v} for v in values]


def test_what_was_not_tuned_is_said_and_so_are_few_seeds(tmp_path) -> None:
    c = tuned(tmp_path, ARMS, {}, {})
    assert caveats.of_arms(c, {"slow": 3}) == {
        "slow": ["untuned: settings as written", "3 seeds, fewer than five"]}
    assert caveats.of_arms(c, {"slow": 5}) == {"slow": ["untuned: settings as written"]}
    c.given = {"full": {"adamw.lr": 0.1}, "slow": {"adamw.lr": 0.1}}
    assert caveats.of_arms(c, {"slow": 5}) == {"slow": []}, "tuned at another size"


def test_a_merge_has_nothing_to_tune(tmp_path) -> None:
    arms = (Arm(name="average"), Arm(name="mostly", set={"methods.interpolate.weights": [0.9, 0.1]}))
    c = Comparison(spec(tmp_path, arms, stage="merged", metric="loss/mean"), Store(tmp_path / "s"), Count())
    assert caveats.of_arms(c, {"mostly": 5}) == {"mostly": []}


def test_an_edge_is_named_for_the_arm_and_for_its_baseline(tmp_path) -> None:
    trials = {"full": rates(1e-3, 1e-2, 1e-1), "slow": rates(1e-3, 1e-2, 1e-1)}
    middle, edge = {"adamw.lr": 1e-2}, {"adamw.lr": 1e-1}
    inside = tuned(tmp_path, ARMS, trials, {"full": middle, "slow": middle})
    assert caveats.of_arms(inside, {"slow": 5}) == {"slow": []} and caveats.warnings(inside) == []
    out = tuned(tmp_path, ARMS, trials, {"full": edge, "slow": edge})
    assert caveats.of_arms(out, {"slow": 5})["slow"] == [
        "tuned to the edge of what was tried: adamw.lr 0.1",
        "full tuned to the edge of what was tried: adamw.lr 0.1"]
    assert len(caveats.warnings(out)) == 2


def test_an_arm_that_searches_one_of_two_rates_is_said_to(tmp_path) -> None:
    trials = {"full": rates(1e-3, 1e-2, 1e-1), "two": rates(1e-3, 1e-2, 1e-1)}
    middle = {name: {"adamw.lr": 1e-2} for name in trials}
    c = tuned(tmp_path, (Arm(name="full"), TWO_RATES), trials, middle)
    methods = c.recipes.stages(TWO_RATES, {})["adapt"]["methods"]
    assert caveats.rates(methods) == ["adamw.lr", "torch_optim.lr"]
    assert caveats.of_arms(c, {"two": 5})["two"] == ["rates searched unequally: 1 of 2 here, 1 of 1 of full"]
    for t in c.trials["two"]:
        t["values"] |= {"torch_optim.lr": t["values"]["adamw.lr"]}
    assert caveats.of_arms(c, {"two": 5})["two"] == [], "both are searched, as all of the baseline's are"


def test_an_arm_that_failed_has_no_verdict_and_no_caveat(tmp_path) -> None:
    c = tuned(tmp_path, ARMS, {}, {})
    c.failed = {"slow": "no memory"}
    assert caveats.of_arms(c, {}) == {}


@pytest.mark.parametrize(("metric", "said"), [(None, 1), (0.5, 0)])
def test_failed_trials_are_a_warning(tmp_path, metric, said) -> None:
    c = tuned(tmp_path, ARMS, {"full": rates(1e-3, 1e-2, 1e-1)}, {"full": {"adamw.lr": 1e-2}})
    c.trials["full"][0]["metric"] = metric
    assert sum("1 of 3 tuning trials failed" in w for w in caveats.warnings(c)) == said
