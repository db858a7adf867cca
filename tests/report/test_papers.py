"""Papers in a terminal: the list says what became of each claim, a card says how it was found out."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainwright.core.errors import UserError
from trainwright.papers import evidence
from trainwright.papers.library import papers
from trainwright.report import papers as shown


def text(what: object) -> str:
    out = io.StringIO()
    Console(file=out, width=120).print(what)
    return " ".join(out.getvalue().split())


def test_the_list_has_every_paper_also_those_that_do_not_run() -> None:
    listed = shown.listing(None, False, None).plain
    assert all(f"  {name}  " in listed for name in papers())
    assert "not runnable here yet" in listed and f"{len(papers())} papers" in listed


def test_the_list_is_narrowed() -> None:
    contradicted = shown.listing(None, False, "contradicted").plain
    assert "  ul2  " in contradicted and "  wsd  " not in contradicted
    still = shown.listing(None, True, None).plain
    assert all("open" in line for line in still.splitlines() if line.startswith("  ") and line[2] != " ")
    found = shown.listing("partial connection", False, None).plain
    assert found.count("  paca  ") == 1 and "1 papers" in found
    with pytest.raises(UserError, match=r"no verdict 'reproducd' \(did you mean 'reproduced'\?\)"):
        shown.listing(None, False, "reproducd")


def test_a_card_shows_each_claim_with_its_interval_or_its_reason() -> None:
    card = text(shown.card(papers()["corda"]))
    for number, one in enumerate(evidence.told(papers()["corda"]), 1):
        assert one.verdict is not None and f"{number}. {one.claim.says} {one.word}" in card
        x, low, high = [f"{one.verdict[k]:+.3f}".replace("-", "−") for k in ("difference", "low", "high")]
        assert f"corda against LoRA in adapt: {one.claim.metric} {x} [{low}, {high}], 5 seeds." in card
    assert "https://arxiv.org/abs/2406.05223" in card and "here: corda" in card
    told = text(shown.card(papers()["quad"]))
    assert "needs scale: models of this size guess on such tasks." in told
    assert "not runnable here yet" in text(shown.card(papers()["pbt"]))


def test_a_price_stands_in_the_same_row() -> None:
    dear = [one for p in papers().values() for one in evidence.told(p) if one.verdict and one.worse]
    assert len(dear) > 20
    assert all(f"Worse: {one.worse[0]['metric']}" in shown.sentence(one) for one in dear)


def test_a_factor_is_told_with_its_interval() -> None:
    one = evidence.told(papers()["paca"])[0]
    assert one.verdict is not None
    ratio, low, high = (f"{one.verdict[k]:.3f}" for k in ("ratio", "ratio_low", "ratio_high"))
    assert f"{ratio} times as much [{low}, {high}]" in shown.effect(one)


def test_old_evidence_says_that_it_is_old() -> None:
    told = [one for p in papers().values() for one in evidence.told(p) if one.verdict]
    carried = [one for one in told if one.entry and one.entry["carried"]]
    assert all("Old: measured before" in shown.sentence(one) for one in carried)


def test_a_method_has_the_claims_of_its_papers() -> None:
    mine = [(paper.id, one.claim.says) for paper, one in shown.of_method("rehearsal_free_distillation")]
    assert mine and {paper for paper, _ in mine} == {"rehearsal-free-cl"}
    assert not any("L2" in says for _, says in mine)
    assert {paper.id for paper, _ in shown.of_method("torch_optim")} == {"muon"}
