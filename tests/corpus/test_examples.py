"""Rows of a corpus by their number, whatever files they lie in."""
from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.corpus.corpora import build, texts
from trainwright.core.errors import UserError
from trainwright.corpus import examples
from trainwright.corpus.tokens import SPLITS, Corpus


def labelled(n: int = 60) -> list[dict[str, Any]]:
    both = [*texts(n, "a"), *texts(n // 2, "b")]
    rows = [row | {"columns": {"label": i % 3}} for i, row in enumerate(both)]
    random.Random(0).shuffle(rows)
    return rows


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """With its documents in three files of several row groups each."""
    build(tmp_path / "c", labelled(), tune=0.1, test=0.2)
    (file,) = (tmp_path / "c" / "documents").iterdir()
    table = pq.read_table(file)
    file.unlink()
    for number in range(3):
        pq.write_table(table[30 * number:30 * number + 30], file.with_name(f"{number:05d}.parquet"),
                       row_group_size=7)
    return Corpus(tmp_path / "c")


def test_every_row_is_found_under_its_id(corpus: Corpus) -> None:
    known = {row["id"]: row for row in labelled()}
    for split in SPLITS:
        found = corpus.examples(split)
        assert found.ids.tolist() == corpus.select(split).id.tolist()
        numbers = np.random.default_rng(0).permutation(len(found)).tolist() * 2
        for number, row in zip(numbers, found.rows(numbers, ["id", "text", "label", "image"]), strict=True):
            assert row["id"] == found.ids[number] and row["text"] == known[row["id"]]["text"]
            assert row["label"] == str(known[row["id"]]["columns"]["label"]) and row["image"] is None
    assert found.rows([], ["id"]) == []


def test_domains_are_selected_and_told(corpus: Corpus) -> None:
    found = corpus.examples("train", ("b",))
    assert set(found.domains.tolist()) == {1} and all(name.startswith("b/") for name in found.ids)
    with pytest.raises(UserError, match="no domain 'c'"):
        corpus.examples("train", ("c",))


def test_few_row_groups_are_held(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "CACHE_BYTES", 1500)
    found = corpus.examples("train")
    for number in range(len(found)):
        assert found.rows([number], ["id", "text"])[0]["id"] == found.ids[number]
        assert len(found._held) == 1 or sum(t.nbytes for t in found._held.values()) <= 1500
    assert 0 < len(found._held) < 8


def test_a_corpus_knows_its_columns_and_classes(corpus: Corpus) -> None:
    assert corpus.columns == {"id": "text", "text": "text", "domain": "text", "source": "text",
                              "metadata": "text",
                              "label": "label"}
    assert corpus.labels == ("0", "1", "2") and not corpus.speaks and not corpus.by_turn
