"""Dropped documents in a terminal and on the page."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.corpus.corpora import KeepLong, build, texts
from tests.corpus.test_left_out import LONG
from trainwright.core.errors import UserError
from trainwright.data.filter.minhash import Minhash
from trainwright.report import left_out
from trainwright.storage.artifact import Artifact


@pytest.fixture
def corpus(tmp_path: Path) -> Artifact:
    twins = [{"id": "first", "text": f"{LONG} and home"}, {"id": "second", "text": f"{LONG} and back"}]
    folder = tmp_path / "corpus-1"
    figures = build(folder, [*texts(8), *twins, {"id": "short", "text": "[b]x"}], KeepLong(least=6),
                    Minhash(threshold=0.6), tokenizer=None)
    write_manifest(folder, figures)
    return Artifact(folder)


def write_manifest(folder: Path, figures: dict[str, Any]) -> None:
    told = {"stage": "corpus", "inputs": {}, "figures": figures}
    (folder / "manifest.json").write_text(json.dumps(told))


def printed(corpus: Artifact, by: str | None = None, most: int = 5) -> str:
    console = Console(width=100, record=True, markup=False)
    console.print(left_out.shown(corpus, by, most))
    return console.export_text()


def test_both_texts_stand_in_one_line(corpus: Artifact) -> None:
    said = printed(corpus, "minhash")
    assert "minhash dropped 1 document\n" in said and "near-duplicate · of" in said
    assert any("first" in line and "second" in line for line in said.splitlines())
    assert sum("grey sea" in line and line.count("grey sea") == 2 for line in said.splitlines()) == 1
    assert "keep_long" not in said


def test_every_method_where_none_is_named(corpus: Artifact) -> None:
    said = printed(corpus)
    assert "keep_long dropped 1 document" in said and "[b]x" in said and "minhash dropped" in said


def test_a_score_that_counts_has_no_decimals() -> None:
    row = {"method": "m", "reason": "shares runs", "partner": "b"}
    assert left_out.because(row | {"score": 48.0}) == "shares runs · 48 · of b"
    assert left_out.because(row | {"score": 0.8125}) == "shares runs · 0.812 · of b"


def test_what_cannot_be_shown(corpus: Artifact, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no method 'minhas' acted on it \(did you mean 'minhash'"):
        left_out.shown(corpus, "minhas", 5)
    write_manifest(tmp_path, {"loss": 1.0})
    with pytest.raises(UserError, match="is no corpus: only a corpus drops documents"):
        left_out.shown(Artifact(tmp_path), None, 5)


def test_nothing_dropped_is_an_answer_too(corpus: Artifact, tmp_path: Path) -> None:
    write_manifest(tmp_path, {"curated": [{"method": "given", "dropped": 0}], "empty_documents": 0})
    console = Console(width=100, record=True)
    console.print(left_out.shown(Artifact(tmp_path), None, 5))
    console.print(left_out.shown(corpus, "given", 5))
    assert "dropped no document." in console.export_text()


def test_rows_of_the_page(corpus: Artifact) -> None:
    found = dict(left_out.for_page(corpus.path))
    assert found["keep_long"] == [{"id": "short", "why": "keep_long: least = 6", "text": "[b]x",
                                   "partner": None, "partner_text": None}]
    assert "grey sea" in str(found["minhash"][0]["partner_text"])
