"""Evidence is whole, its verdicts follow from its numbers, and what is older than its code says so."""

import json
from dataclasses import replace

import pytest

from trainwright.compare import verdicts
from trainwright.core import registry
from trainwright.papers import evidence
from trainwright.papers import paper as papers_of
from trainwright.papers.evidence import Told
from trainwright.papers.library import papers

FILES = sorted(evidence.folder().glob("*.json"))
TOLD = [(p, one) for p in papers().values() for one in evidence.told(p)]
MEASURED = [(p, one) for p, one in TOLD if one.verdict is not None]


def ids(one):
    return getattr(one, "id", None) or one.claim.says[:40]


def test_reasons_are_those_of_verdicts():
    assert papers_of.REASONS == verdicts.REASONS
    words = {"reproduced", "weaker", "no difference", "contradicted", "not tested"}
    assert set(evidence.WORDS) == words | {evidence.OPEN}


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_evidence_on_disk_belongs_to_claims(file):
    found = json.loads(file.read_text())
    paper = papers()[file.stem]
    assert found["paper"] == paper.id and found["arxiv"] == paper.arxiv
    says = [c.says for c in paper.claims if not c.not_tested]
    assert {e["says"] for e in found["claims"]} <= set(says)
    assert set(found["methods"]) <= set(registry.cards())


@pytest.mark.parametrize(("paper", "one"), MEASURED, ids=ids)
def test_a_verdict_follows_from_its_numbers(paper, one):
    found = verdicts.read(one.verdict, paper.id)
    assert found.expects == verdicts.expects(one.claim.expects, paper.id), "another claim was measured"
    if not one.entry["carried"]:
        again = verdicts.judge(found.expects, one.entry["differences"], one.entry["baseline_values"],
                               one.entry["better"])
        assert (again.difference, again.p) == pytest.approx((found.difference, found.p))


@pytest.mark.parametrize("paper", sorted(papers()))
def test_every_claim_has_an_arm(paper):
    for claim in papers()[paper].claims:
        assert claim.arm and claim.baseline and claim.arm != claim.baseline
        if claim.suite or claim.recipe:
            assert {claim.arm, claim.baseline} <= set(claim.arms)


@pytest.mark.parametrize(("paper", "one"), MEASURED, ids=ids)
def test_no_evidence_is_older_than_the_code_without_saying_so(paper, one):
    """What was carried over is called old wherever it is shown; all else was measured with today's code."""
    if one.entry["carried"]:
        assert evidence.old(one)
    else:
        assert not evidence.old(one), f"measure it again: trainwright reproduce {paper.id}"


def test_evidence_is_old_once_a_method_of_an_arm_changes():
    paper = papers()["paca"]
    claim = paper.claims[0]
    entry = {"verdict": {"word": "weaker"}, "carried": False, "code": evidence.code_of(claim), "also": []}
    assert set(entry["code"]) == {"suite sft", "paca", "lora"}
    assert evidence.old(Told(claim, entry)) == ""
    changed = entry | {"code": entry["code"] | {"paca": "0" * 16}}
    assert evidence.old(Told(claim, changed)) == "measured before paca changed"
    gone = entry | {"code": entry["code"] | {"gone": "0" * 16}}
    assert evidence.old(Told(claim, gone)) == "measured before gone changed"
    assert "before the code was kept" in evidence.old(Told(claim, entry | {"carried": True}))
    assert evidence.old(Told(claim, None)) == ""


def test_a_recipe_or_a_program_counts_as_a_suite_does():
    law = papers()["d-cpt-law"].claims[0]
    assert set(evidence.code_of(law)) == {"script benchmarks/claims.py"}
    mine = replace(papers()["paca"].claims[0], suite="", recipe="clip.toml")
    assert set(evidence.code_of(mine)) == {"recipe clip.toml", "paca", "lora"}


def test_methods_count_wherever_an_arm_names_them():
    claim = papers()["bert2bert"].claims[0]
    assert {"bert2bert", "pack", "cosine", "suite pretrain"} <= set(evidence.code_of(claim))


def test_the_state_of_a_paper_is_that_of_its_claims(tmp_path, monkeypatch):
    paca, open_ = papers()["paca"], replace(papers()["paca"], id="unmeasured")
    assert evidence.state(paca) == "in part" and evidence.state(open_) == "open"
    assert evidence.state(papers()["pbt"]) == "listed" and evidence.state(papers()["clip"]) == "here"
    assert evidence.state(papers()["self-guide"]) == "here"
    assert evidence.state(papers()["wsd"]) == "measured"
