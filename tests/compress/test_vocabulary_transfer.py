"""Vocabulary transfer: rows kept, rows made of pieces, a union of added tokens, models that fit together."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.lm.architectures import make
from trainwright import families
from trainwright.check import tiny
from trainwright.compress.vocabulary_transfer import VocabularyTransfer, pieces, united
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import bpe
from trainwright.families import alike

TEXTS = ["the sea the ship the rain the shore", "a ship and a shore and a sea"] * 5


def other() -> Any:
    return bpe.train(TEXTS, 300)


def speaking(tied: bool) -> Any:
    """A model of the tiny tokenizer."""
    return make("llama", vocab_size=len(tiny.tokenizer()), tie_word_embeddings=tied)


def moved(folder: Path, tokenizer: Any, tied: bool) -> tuple[Any, Context]:
    model = speaking(tied)
    families.save(model, folder / "model", tiny.tokenizer())
    ctx = Context(inputs={"model": [folder / "model"]}, tokenizer=tokenizer)
    VocabularyTransfer().operate(model, ctx)
    return model, ctx


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_kept_or_means_of_pieces(tmp_path: Path, tied: bool) -> None:
    new, old = other(), tiny.tokenizer()
    model, _ = moved(tmp_path, new, tied)
    before, there = speaking(tied), old.get_vocab()
    assert model.get_input_embeddings().weight.shape[0] == len(new) == model.config.vocab_size
    token = next(t for t in new.get_vocab() if t not in there and not t.startswith("<"))
    parts = [one.id for one in old.backend_tokenizer.model.tokenize(token)]
    assert len(parts) > 1 and "".join(old.convert_ids_to_tokens(parts)) == token
    kept = next(t for t in new.get_vocab() if t in there)
    for made, rows in ((model.get_input_embeddings(), before.get_input_embeddings().weight),
                       (model.lm_head, before.lm_head.weight)):
        torch.testing.assert_close(made.weight[new.get_vocab()[token]], rows[parts].mean(0))
        assert torch.equal(made.weight[new.get_vocab()[kept]], rows[there[kept]])
    assert model.config.eos_token_id == new.eos_token_id
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    assert model(input_ids=torch.tensor([new("the ship")["input_ids"]])).logits.shape[-1] == len(new)


def test_a_union_has_the_added_tokens_of_both(tmp_path: Path) -> None:
    old = copy.deepcopy(tiny.tokenizer())
    old.add_tokens(["<tool>"], special_tokens=True)
    whole = united(other(), old)
    assert set(whole.get_vocab()) == set(other().get_vocab()) | {"<tool>"} | {
        t.content for t in old.added_tokens_decoder.values()}
    assert whole("<tool>", add_special_tokens=False)["input_ids"] == [whole.get_vocab()["<tool>"]]
    assert pieces(old, whole)[whole.get_vocab()["<tool>"]] == [old.get_vocab()["<tool>"]]


def test_two_vocabularies_can_be_merged_afterwards(tmp_path: Path) -> None:
    new = other()
    model, ctx = moved(tmp_path, new, True)
    families.save(model, tmp_path / "moved", ctx.tokenizer)
    sides = [alike.Side(name, families.load(tmp_path / name, name).config, tmp_path / name)
             for name in ("moved", "model")]
    with pytest.raises(UserError, match="moved and model cannot be put together"):
        alike.check_alike(sides)
    assert alike.check_alike([sides[0], sides[0]]) == []


def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    families.save(tiny.model(), tmp_path / "model", None)
    with pytest.raises(UserError, match="the model has no tokenizer"):
        VocabularyTransfer().operate(tiny.model(), Context(inputs={"model": [tmp_path / "model"]},
                                                           tokenizer=other()))
