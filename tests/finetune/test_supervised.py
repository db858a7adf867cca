"""Only what the assistant says is learned, and a corpus that cannot say what that is is refused."""
from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from tests.corpus.corpora import build, texts
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.pack import Pack
from trainwright.finetune.supervised import Supervised


def test_targets_are_the_assistants_words(tmp_path: Path):
    chats = [{"id": str(i), "messages": [{"role": "user", "content": f"Question {i}?"},
                                         {"role": "assistant", "content": f"Answer {i}."}]} for i in range(6)]
    build(tmp_path / "c", chats, chat_template="chatml", tune=0.0, test=0.0)
    ctx = Context(inputs={"data": [tmp_path / "c"]}, batch_rows=2)
    method, pack = Supervised(), Pack(length=64)
    method.init(nn.Identity(), ctx)
    batch = pack.next(None, pack.init(nn.Identity(), ctx), ctx)  # type: ignore[arg-type]
    tokenizer = open_corpus(tmp_path / "c").tokenizer
    learned = [
        tokenizer.decode(batch["targets"][r][(batch["document"][r] == d) & (batch["targets"][r] != -100)])
        for r in range(2)
        for d in range(int(batch["document"][r].max()) + 1)
    ]
    assert learned and all(
        text.startswith("Answer") and "Question" not in text and "user" not in text for text in learned
    )
    assert method.count(batch) == int((batch["targets"] != -100).sum())


def test_plain_text_is_refused(tmp_path: Path):
    build(tmp_path / "c", texts(8))
    with pytest.raises(UserError, match="next_token"):
        Supervised().init(nn.Identity(), Context(inputs={"data": [tmp_path / "c"]}))


def test_a_corpus_in_which_nothing_is_learned_is_an_error(tmp_path: Path):
    talk = [{"id": str(i), "messages": [{"role": "user", "content": json.dumps(i)}]} for i in range(4)]
    with pytest.raises(UserError):
        build(tmp_path / "c", talk, chat_template="chatml")
