"""Training a tokenizer: the same tokens for texts as people write them, and an end for all others."""
from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import pre_tokenizers

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


def longest(texts: Iterator[str]) -> int:
    """The most letters of a word that the trainer is given."""
    split = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return max(end - begin for text in texts for _, (begin, end) in split.pre_tokenize_str(text))


SOME = "".join(chr(i) for i in range(0, 0x110000, 8) if not 0xD800 <= i < 0xE000)
HARD = {"a word of a million letters": "a" * 1_000_000, "a text without spaces": "日本語です。" * 20_000,
        "characters of all scripts": SOME, "kinds of numbers": "½7" * 50_000, "controls": "\x1c!" * 50_000,
        "new letters": "a\U0001DF25" * 50_000, "blanks": "\u2003\t" * 50_000 + " " * 50_000}


@pytest.mark.parametrize("name", HARD)
def test_no_text_makes_a_word_beyond_the_limit(name: str) -> None:
    words = list(bpe._words([f"before {HARD[name]} after"]))
    assert "".join(words) == f"before {HARD[name]} after"
    assert longest(iter(words)) <= bpe.LONGEST + 1, "a blank before a word counts with it"


def test_beyond_so_many_different_words_only_known_ones_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "MOST", 9)
    given = ["one  two\n", "two three one six", "four one", "two\n\none"]
    assert list(bpe._known(given)) == ["one  two\n", "two one six", "one", "two\n\none"]
    monkeypatch.setattr(bpe, "MOST", 5000)
    made = " ".join(f"{i:x}" for i in range(100_000))
    (found,) = bpe._known([made])
    assert sum(map(len, found.split())) <= 5000 and made.startswith(found), "one text of many words, too"


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
