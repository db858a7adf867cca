"""Pages of papers: one each, every claim in a row with its verdict, its drawing and its price."""

from __future__ import annotations

import re

from trainwright.papers import evidence
from trainwright.papers.library import papers, taxonomies
from trainwright.report import paper_pages


def test_every_paper_has_a_page_and_stands_in_the_index() -> None:
    pages = paper_pages.pages()
    assert set(pages) == {f"papers/{name}.md" for name in papers()} | {"papers/index.md"}
    assert all(f"[{name}]({name}.md)" in pages["papers/index.md"] for name in papers())
    for name, paper in papers().items():
        assert pages[f"papers/{name}.md"].startswith("# ") and (paper.link in pages[f"papers/{name}.md"])
    links = {link for text in pages.values() for link in re.findall(r"\]\(([a-z0-9-]+)\.md\)", text)}
    assert links <= set(papers()) and set(taxonomies()) <= links


def test_every_claim_is_a_row_with_its_price() -> None:
    page = paper_pages.page(papers()["mam-adapter"])
    rows = [line for line in page.splitlines() if line.startswith(("| it learns", "| with 6.7"))]
    told = evidence.told(papers()["mam-adapter"])
    assert len(rows) == len(told) == 2 and all(line.count("|") == 6 for line in rows)
    for one, line in zip(told, rows, strict=True):
        assert f"**{one.word}**" in line and "<svg" in line and "5 seeds" in line
        assert not one.worse or f"worse: `{one.worse[0]['metric']}`" in line
        assert ("*old:" in line) == bool(evidence.old(one))
    for paper in papers().values():
        if any(one.word == evidence.OPEN for one in evidence.told(paper)):
            page = paper_pages.page(paper)
            assert "**open**" in page and "not measured yet" in page


def test_the_evidence_counts_what_it_shows() -> None:
    text = paper_pages.evidence_tables()
    told = [one for p in papers().values() for one in evidence.told(p)]
    for word in evidence.WORDS:
        count = sum(one.word == word for one in told)
        assert f"| {word} | {count} |" in text
        assert len(re.findall(rf"\*\*{word}\*\*", text)) == count
    stale = sum(bool(evidence.old(one)) for one in told)
    assert not stale or f"{stale} measurements are older" in text


def test_a_survey_shows_how_it_divides_the_field() -> None:
    page = paper_pages.page(papers()["cl-llm-survey"])
    assert "**Continual instruction tuning.**" in page and "[hft](hft.md)" in page
