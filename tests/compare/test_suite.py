"""A suite says how its baseline was tuned, what tricks gain on it, and how far it lies from itself; what is
committed of that must allow the verdicts that rest on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.compare.tiny import Count, recipe
from trainwright.compare import suite
from trainwright.compare.compare import Comparison
from trainwright.core import recipe as recipes
from trainwright.core.errors import UserError
from trainwright.core.registry import cards
from trainwright.papers import evidence
from trainwright.papers.library import papers
from trainwright.storage.store import Store

HEAD = """
[compare]
stage = "adapt"
metric = "loss/code"
seeds = 2
points = 0
baseline = "full"
"""
SEARCH = """
[compare]
recipe = "../life.toml"
stage = "adapt"
metric = "loss/code"
points = 0
baseline = "full"
search = "coordinate"
tune = { "adamw.lr" = [1e-3, 1e-2], "pack.length" = [32] }

[[arm]]
name = "full"

[[arm]]
name = "clipped"
add = [{ use = "clip_gradients" }]
"""
@pytest.fixture
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The suite ``life`` with its search, and no evidence."""
    monkeypatch.setattr(evidence, "SUITES", recipe(tmp_path, HEAD).parent)
    (tmp_path / "tuning").mkdir()
    (tmp_path / "tuning" / "life.toml").write_text(SEARCH)
    return tmp_path


def put(folder: Path, **parts: Any) -> None:
    """Evidence of the suite ``life`` of today."""
    made = {part: told | {"code": suite.code("life", part), "date": "2026-11-30"}
            for part, told in parts.items()}
    (folder / "suites").mkdir(exist_ok=True)
    (folder / "suites" / "life.json").write_text(json.dumps({"suite": "life", **made}))


def trick(name: str, low: float, high: float, better: str = "lower", uses: tuple[str, ...] = ()) -> Any:
    return {"arm": name, "low": low, "high": high, "better": better, "uses": list(uses)}


# ---- what is committed -------------------------------------------------------------------------------


def test_no_trick_gains_more_than_what_a_suite_shows() -> None:
    """A gain smaller than that of a trick that the baseline lacks may be the lack of the trick; whoever says
    that nothing is lost has shown none."""
    doubts = {}
    for paper, one in [(p, one) for p in papers().values() for one in evidence.told(p)]:
        shown = one.claim.gains and one.word in ("reproduced", "weaker")
        if one.claim.suite and shown and not evidence.old(one):
            found = suite.part_of(one.claim.suite, "tricks")
            if found is not None and found["metric"] == one.claim.metric:
                uses = set(evidence.code_of(one.claim))
                doubts[f"{paper.id}: {one.claim.says}"] = suite.in_doubt(
                    one.verdict["difference"], one.entry["better"], uses, one.claim.suite)
    assert doubts and not any(doubts.values()), f"tune the baseline again: {doubts}"


@pytest.mark.parametrize("name", sorted(suite.names()))
def test_a_baseline_has_what_its_search_chose(name: str) -> None:
    found = suite.read(name).get("tuning")
    if found is None:
        return
    settings = recipes.read(suite.find(name))[0]
    stage = next(s for s in settings["stage"] if s["name"] == settings["compare"]["stage"])
    for key, value in found["chosen"].items():
        use, *path = key.split(".")
        at: Any = stage["model"] if use == "model" else next(m for m in stage["methods"] if m["use"] == use)
        for part in path:
            at = at[part]
        assert at == value, f"{name}: {key}"


@pytest.mark.parametrize("name", sorted(suite.names()))
def test_a_suite_is_a_comparison_of_its_baseline_with_itself(name: str) -> None:
    spec = suite.spec_of(name, "aa")
    assert [a.name for a in spec.arms] == [spec.baseline, f"{spec.baseline} again"]
    assert spec.settings.seeds >= 10 and not spec.settings.tune


def test_pretraining_reads_ten_tokens_a_parameter() -> None:
    table = recipes.read(suite.find("pretrain"))[0]
    vocabulary = next(s for s in table["stage"] if s["name"] == "corpus")["vocab_size"]
    m = next(s for s in table["stage"] if s["name"] == "base")["model"]
    h, heads, kv = m["hidden_size"], m["num_attention_heads"], m["num_key_value_heads"]
    block = 2 * h * h + 2 * h * h * kv // heads + 3 * h * m["intermediate_size"] + 2 * h
    parameters = vocabulary * h + m["num_hidden_layers"] * block + h
    assert table["compare"]["budget"]["tokens"] >= 10 * parameters


def test_the_search_of_pretraining_goes_over_what_a_baseline_owes_its_arms() -> None:
    spec = suite.spec_of("pretrain", "tuning")
    assert set(spec.settings.tune) == {"torch_optim.lr", "adamw.lr", "model.initializer_range",
                                       "cosine.warmup", "torch_optim.options.weight_decay"}
    tricks = suite.spec_of("pretrain", "tricks")
    assert {a.name for a in tricks.arms} >= {"one rate", "initial weights of 0.02", "Muon"}
    assert all(m["use"] in cards() for a in tricks.arms for m in a.add)
    found = Comparison(tricks, Store(Path("nowhere"))).candidates
    assert {len(tried) for tried in found.values()} == {5}, "each arm has as many trials"


# ---- tricks ------------------------------------------------------------------------------------------


def test_what_a_trick_gains_at_least_is_the_near_end_of_its_interval(life: Path) -> None:
    put(life, tricks={"arms": [trick("two rates", -0.3, -0.1), trick("none", -0.1, 0.1),
                               trick("right", 0.02, 0.05, "higher", ("muon",))]})
    found = {name: least for name, (least, _) in suite.gains("life", life).items()}
    assert found == {"two rates": 0.1, "none": 0.0, "right": 0.02}


def test_an_effect_below_a_trick_is_in_doubt_unless_the_trick_is_the_claim(life: Path) -> None:
    put(life, tricks={"arms": [trick("Muon", -0.3, -0.1, uses=("torch_optim",)), trick("no", -0.1, 0.1)]})
    assert suite.in_doubt(-0.05, "lower", {"mix_ln"}, "life", life) == ["Muon"]
    assert suite.in_doubt(-0.05, "lower", {"torch_optim"}, "life", life) == []
    assert suite.in_doubt(-0.2, "lower", {"mix_ln"}, "life", life) == []
    assert suite.in_doubt(0.05, "lower", {"mix_ln"}, "life", life) == [], "it does not claim to gain"


def test_what_was_measured_in_another_suite_counts_for_nothing(life: Path) -> None:
    put(life, aa={"run_seconds": 7.0})
    assert suite.seconds_of_a_run("life", life) == 7.0
    (life / "life.toml").write_text((life / "life.toml").read_text() + "# another\n")
    assert suite.part_of("life", "aa", life) is None and suite.seconds_of_a_run("life", life) is None


def test_what_is_not_there_is_named(life: Path) -> None:
    with pytest.raises(UserError, match=r"no suite 'lief' \(did you mean 'life'\?\)"):
        suite.find("lief")
    (life / "tuning" / "life.toml").unlink()
    with pytest.raises(UserError, match=r"the suite life has no search: tuning/life\.toml is not there"):
        suite.spec_of("life", "tuning")


# ---- measuring ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_search_keeps_every_trial_and_what_it_chose(life: Path) -> None:
    watch = Count()
    made = suite.measure("life", "tuning", Store(life / "store"), life / "evidence", watch)
    assert [t["values"]["adamw.lr"] for t in made["trials"]] == [1e-2, 1e-3]
    best = min(made["trials"], key=lambda t: t["metric"])
    assert made["chosen"] == best["values"] and made["at_edge"] == ["adamw.lr"]
    assert len(watch.begun) == 2, "no run that counts"
    kept = json.loads((life / "evidence" / "suites" / "life.json").read_text())
    assert kept["tuning"] == made and suite.part_of("life", "tuning", life / "evidence") == made


@pytest.mark.slow
def test_the_noise_of_a_suite_is_that_of_all_its_runs(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.compare.tiny import fixed_costs
    from trainwright.compare import costs
    monkeypatch.setattr(costs, "measure", fixed_costs)
    made = suite.measure("life", "aa", Store(life / "store"), life / "evidence", Count(),
                         changes={"compare.seeds": 3})
    one = made["metrics"]["loss/code"]
    assert made["runs"] == len(one["values"]) == 6 and one["sd"] > 0 and 0 <= one["wrong"] <= 1
    assert suite.seconds_of_a_run("life", life / "evidence") == made["run_seconds"]
