"""A control token begins every text, stays with the tokenizer, and moves no target."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.corpus.corpora import build, texts
from trainwright import families
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.corpus import beginnings
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.generation import encoded

MODES = ("[R]", "[X]", "[S]")
TALK = [{"role": "user", "content": "ping"}, {"role": "assistant", "content": "pong"}]


def ids_of(folder: Path) -> list[list[int]]:
    """The tokens of each document."""
    corpus = open_corpus(folder)
    found = corpus.select("train")
    return [
        corpus.read(int(s), int(o), int(n)).tolist()
        for s, o, n in zip(found.shard, found.offset, found.length, strict=True)
    ]


def shares() -> dict[str, Any]:
    return {"tune": 0.0, "test": 0.0, "control_tokens": MODES}


def test_texts_begin_with_it_and_have_the_same_tokens_and_targets_else(tmp_path: Path) -> None:
    with_mode = build(tmp_path / "s", texts(12), prefix="[S]", **shares())
    without = build(tmp_path / "plain", texts(12), **shares())
    tokenizer = open_corpus(tmp_path / "s").tokenizer
    mode = tokenizer.convert_tokens_to_ids("[S]")
    pairs = list(zip(ids_of(tmp_path / "s"), ids_of(tmp_path / "plain"), strict=True))
    assert pairs and all(a[0] == mode and b[0] == tokenizer.bos_token_id and a[1:] == b[1:] for a, b in pairs)
    for figure in ("tokens", "trained_tokens", "bytes", "vocab_size"):
        assert with_mode[figure] == without[figure]


def test_it_stays_with_the_tokenizer(tmp_path: Path) -> None:
    """What a model is saved with begins prompts with it, read by transformers alone; another corpus of that
    tokenizer has it, or a prefix of its own."""
    build(tmp_path / "s", texts(6), prefix="[S]", **shares())
    tokenizer = open_corpus(tmp_path / "s").tokenizer
    families.save(tiny.model(), tmp_path / "model", tokenizer)
    plain = AutoTokenizer.from_pretrained(tmp_path / "model")
    mode = plain.convert_tokens_to_ids("[S]")
    assert plain("on")["input_ids"] == [mode, *plain("on", add_special_tokens=False)["input_ids"]]
    assert encoded(tiny.model(), plain, "on", False, "")[0] == mode
    build(tmp_path / "again", texts(6), tokenizer=str(tmp_path / "s"))
    assert all(ids[0] == mode for ids in ids_of(tmp_path / "again"))
    build(tmp_path / "r", texts(6), tokenizer=str(tmp_path / "s"), prefix="[R]")
    other = plain.convert_tokens_to_ids("[R]")
    assert all(ids[0] == other and mode not in ids for ids in ids_of(tmp_path / "r"))
    assert open_corpus(tmp_path / "r").tokenizer.get_vocab() == plain.get_vocab(), "one model reads both"


@pytest.mark.parametrize("chosen", ["chatml", "by_turn"])
def test_conversations_begin_with_it_once(chosen: str, tmp_path: Path) -> None:
    rows = [{"id": str(i), "messages": TALK, "domain": "d"} for i in range(4)]
    build(tmp_path / "s", rows, prefix="[S]", chat_template="chatml", **shares())
    build(tmp_path / "r", rows, tokenizer=str(tmp_path / "s"), prefix="[R]", chat_template=chosen)
    for name in ("s", "r"):
        tokenizer = open_corpus(tmp_path / name).tokenizer
        modes = [tokenizer.convert_tokens_to_ids(m) for m in MODES]
        mode = tokenizer.convert_tokens_to_ids(f"[{name.upper()}]")
        prompt = encoded(tiny.model(), tokenizer, "ping", True, "")
        for ids in (*ids_of(tmp_path / name), prompt):
            assert ids[0] == mode and not set(ids[1:]) & set(modes)


def test_what_a_tokenizer_puts_behind_a_text_stays(tmp_path: Path) -> None:
    from tokenizers import processors

    tokenizer = copy.deepcopy(tiny.tokenizer())      # that one is everybody's
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end[0]} $A {end[0]}", special_tokens=[end]
    )
    beginnings.add(tokenizer, ["[S]"])
    beginnings.begin(tokenizer, "[S]")
    ids = tokenizer("on")["input_ids"]
    assert ids[0] == tokenizer.convert_tokens_to_ids("[S]") and ids[-1] == end[1] and ids.count(end[1]) == 1


def test_a_prefix_that_is_no_token_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prefix = '\[S\]' is no token .*: name it in control_tokens"):
        build(tmp_path / "s", texts(6), prefix="[S]")
