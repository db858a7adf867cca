"""Training a tokenizer: the same tokens for texts as people write them, and an end for all others."""
from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import trainwright
from tests.corpus.corpora import ODD
from trainwright.corpus import bpe


def test_the_limit_changes_nothing_for_normal_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [
        *ODD,
        *(file.read_text() for file in Path(trainwright.__file__).parent.glob("core/*.py")),
        "=" * 200,
    ]
    made = bpe.train(texts, 600).backend_tokenizer.to_str()
    monkeypatch.setattr(bpe, "RUNS", re.compile("(?!)"))
    assert bpe.train(texts, 600).backend_tokenizer.to_str() == made


@pytest.mark.parametrize("run", ["a", "é", "7", "=", "_", " ", "\n", "日"])
def test_no_word_of_the_trainer_is_longer_than_the_limit(run: str) -> None:
    text = f"before {run * 5000} after{run * bpe.LONGEST}"
    words = list(bpe._words([text, None, ""]))
    assert "".join(words) == text and max(map(len, words)) <= bpe.LONGEST + len("before  after")
    assert len(words) >= 6


def test_a_long_run_is_encoded_as_it_is() -> None:
    made: Any = bpe.train(["a" * 100_000, "b"], 300)
    assert made.decode(made("a" * 3000, add_special_tokens=False)["input_ids"]) == "a" * 3000
    assert len(made.backend_tokenizer.pre_tokenizer.pre_tokenize_str("a" * 3000)) == 1, "it knows no limit"
