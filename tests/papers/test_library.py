"""The papers that are installed: all of them load, and what they name exists."""

import subprocess
import sys

import pytest

from trainwright.core import registry
from trainwright.core.errors import UserError
from trainwright.papers import library
from trainwright.papers.library import papers, taxonomies

SURVEYED = 330


def test_all_papers_of_the_field_are_here():
    assert sum(not p.companion for p in papers().values()) == SURVEYED
    assert len(taxonomies()) == 8 and set(taxonomies()) <= set(papers())


def test_every_paper_has_its_place():
    nowhere = {p.id for p in papers().values() if not p.place and p.kind != "survey" and not p.companion}
    assert len(nowhere) <= 1, nowhere
    for survey, taxonomy in taxonomies().items():
        assert papers()[survey].kind == "survey" and taxonomy.source
        assert len({c.id for c in taxonomy.classes}) == len(taxonomy.classes)


def test_lines_are_lines():
    for paper in papers().values():
        assert paper.about.endswith(".") and len(paper.about) <= 130, paper.id
        assert 1990 < paper.year < 2030 and len({c.says for c in paper.claims}) == len(paper.claims)


def test_every_method_that_a_paper_names_exists():
    named = {m for p in papers().values() for m in (*p.methods, *library.methods(p))}
    assert named <= set(registry.cards()) and {"paca", "corda"} <= named


def test_a_paper_is_found_by_its_id_its_number_and_its_method():
    assert library.find("paca") is library.find("2503.01905") is library.find("arXiv:2503.01905")
    assert library.find("d_cpt_law").id == "d-cpt-law"
    assert library.find("rehearsal_free_distillation").id == "rehearsal-free-cl"
    with pytest.raises(UserError, match="did you mean 'paca'"):
        library.find("pacca")


def test_a_search_looks_through_the_whole_card():
    def found(words):
        return {p.id for p in library.search(papers().values(), words)}

    assert "paca" in found("partial CONNECTION") and "hft" in found("2404.18466")
    assert "pubmedbert" in found("medical vocabulary") and found("nothing of the kind") == set()


@pytest.mark.parametrize(("second", "says"), [
    ('arxiv = "2503.01905"', "arXiv 2503.01905 is a.toml already"),
    ('arxiv = "cs/0101"', "is no number such as"),
    ('place = { ptm = "theory" }', "there is no taxonomy 'ptm'"),
    ('place = { ptm-survey = "magic" }', "ptm-survey has no class 'magic'"),
    ("arxiv = ", "b.toml: Invalid value"),
])
def test_what_is_wrong_with_a_file_is_said(tmp_path, second, says):
    head = 'title = "T"\nyear = 2024\nabout = "It is."\nkind = "study"\nstage = "data"\nmodality = "text"\n'
    (tmp_path / "a.toml").write_text(head + 'arxiv = "2503.01905"\n')
    (tmp_path / "b.toml").write_text(head + second + "\n")
    with pytest.raises(UserError, match=says):
        library.read(tmp_path)


def test_papers_are_read_without_torch():
    code = ("import sys; from trainwright.papers import library; library.papers(); "
            "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
