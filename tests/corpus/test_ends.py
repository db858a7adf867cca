"""Every text has an end, whatever a tokenizer says of it."""
from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.corpora import build
from trainwright.core.errors import UserError
from trainwright.corpus import ends


def test_a_tokenizer_that_names_no_end_of_text_is_given_one_or_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    rows = [{"text": f"a b {i}"} for i in range(20)]
    whole = build(tmp_path / "whole", rows)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((tmp_path / "whole/tokenizer.json").read_bytes())
    said: list[str] = []
    again = build(tmp_path / "again", rows, tokenizer=str(bare), said=said)
    assert again["tokens"] == whole["tokens"], "documents end in both"
    assert "tokenizer: it does not say what ends a text; <|endoftext|> is taken, which it has" in said
    Tokenizer(models.BPE({"a": 0, "b": 1}, [])).save(str(bare / "tokenizer.json"))
    with pytest.raises(
        UserError, match=r"bare names no end of text, so that documents would run into one another"
    ):
        build(tmp_path / "none", rows, tokenizer=str(bare))


def test_a_tokenizer_that_ends_texts_itself_needs_no_other_end(tmp_path: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, models, processors
    from transformers import PreTrainedTokenizerFast
    made = Tokenizer(models.BPE({"a": 0}, []))
    made.add_special_tokens([AddedToken("[SEP]", special=True)])
    made.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 1)])
    assert ends.give_end(PreTrainedTokenizerFast(tokenizer_object=made)) is None
