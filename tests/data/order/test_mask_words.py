"""Words are hidden whole, about 15 % of the tokens, the same on any number of ranks; no special token is."""
from __future__ import annotations

from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus import bpe
from trainwright.data.order import mask_words
from trainwright.data.order.mask_words import MaskWords

TEXT = "the lighthouse keepers, walking 42 miles along grüne shores of unfathomable depths (again). "


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return bpe.train([TEXT * 2, "walk light house shore"], 290, mask=True)


def wordpiece() -> Any:
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "[MASK]", "light", "##house", "##s", "the", ",", "keep", "##er"]
    backend = Tokenizer(models.WordPiece({t: i for i, t in enumerate(vocabulary)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", cls_token="[CLS]",
                                   sep_token="[SEP]", mask_token="[MASK]")


def batch_of(tokenizer: Any, rows: int = 4, padding: int = 5) -> Batch:
    ids = torch.tensor([tokenizer(f"{i} {TEXT * 3}")["input_ids"][:60] for i in range(rows)])
    empty = torch.zeros(rows, padding, dtype=torch.int64)
    document = torch.cat([torch.zeros_like(ids), empty - 1], 1)
    return {"input_ids": torch.cat([ids, empty], 1), "document": document}


def masked(batch: Batch, ctx: Context, **settings: Any) -> Batch:
    method = MaskWords(**settings)
    return method.next(lambda: batch, method.init(nn.Linear(1, 1), ctx), ctx)


def groups(tokenizer: Any, text: str) -> list[str]:
    """The tokens of a text, those of one word put together."""
    ids = torch.tensor(tokenizer(text)["input_ids"])
    words = mask_words.words_of(tokenizer, tokenizer.mask_token_id)
    number = mask_words.numbered(words, ids, torch.ones_like(ids, dtype=torch.bool))
    found = [tokenizer.decode(ids[number == n]).strip() for n in range(int(number[-1]) + 1)]
    return [f for f in found if f]                                              # lone spaces are no words


def test_words_are_what_people_call_so(tokenizer: Any) -> None:
    assert groups(tokenizer, TEXT) == [
        "<|endoftext|>", "the", "lighthouse", "keepers", ",", "walking", "42", "miles", "along", "grüne",
        "shores", "of", "unfathomable", "depths", "(", "again", ")."]
    pieces = wordpiece()
    assert len(pieces("lighthouses")["input_ids"]) == 3
    assert [g.replace(" ", "").replace("##", "") for g in groups(pieces, "the lighthouses, keeper")] == [
        "the", "lighthouses", ",", "keeper"]


@pytest.mark.slow
def test_the_share_of_tokens_and_what_becomes_of_them(tokenizer: Any) -> None:
    special, there = torch.tensor(tokenizer.all_special_ids), batch_of(tokenizer)["document"] >= 0
    counts, ways = [], torch.zeros(3)
    for step in range(150):
        given = batch_of(tokenizer)
        out = masked(given, Context(seed=1, step=step, tokenizer=tokenizer))
        hidden = out["targets"] != UNTRAINED
        was, now = given["input_ids"][hidden], out["input_ids"][hidden]
        assert torch.equal(out["targets"][hidden], was) and not torch.isin(was, special).any()
        assert torch.equal(out["input_ids"][~hidden], given["input_ids"][~hidden])
        assert not hidden[~there].any() and torch.equal(out["attention_mask"].bool(), there)
        counts += hidden.sum(1).tolist()
        gap, same = now == tokenizer.mask_token_id, now == was
        assert not torch.isin(now[~gap & ~same], special).any()
        ways += torch.tensor([gap.sum(), (~gap & ~same).sum(), same.sum()])
    assert max(counts) == 9 and 7.5 < sum(counts) / len(counts) <= 9       # round(0.15 * 60), in whole words
    share = ways / ways.sum()
    assert torch.allclose(share, torch.tensor([0.8, 0.1, 0.1]), atol=0.02), share      # four standard errors


def test_a_row_is_masked_the_same_wherever_it_is_read(tokenizer: Any) -> None:
    whole, ctx = batch_of(tokenizer), Context(seed=3, step=5, tokenizer=tokenizer)
    out = masked(whole, ctx)
    for rows in ([0, 1], [2, 3], [3, 0]):
        part = masked({n: t[rows] for n, t in whole.items()}, ctx)
        assert all(torch.equal(part[n], out[n][rows]) for n in ("input_ids", "targets"))
    again = masked(whole, Context(seed=3, step=6, tokenizer=tokenizer))
    assert not torch.equal(again["targets"], out["targets"]), "another step hides other words"


def test_a_word_longer_than_the_share_is_hidden_all_the_same() -> None:
    pieces = wordpiece()
    ids = torch.tensor(pieces("lighthouses")["input_ids"])
    out = masked({"input_ids": ids[None]}, Context(tokenizer=pieces))
    assert (out["targets"][0] == ids).all()


def test_a_tokenizer_without_a_mask_token(tokenizer: Any) -> None:
    plain = bpe.train([TEXT], 280)
    with pytest.raises(UserError, match="has no mask token: set mask_token = true on the corpus"):
        masked(batch_of(plain), Context(tokenizer=plain))
    with pytest.raises(UserError, match="has no token '<gap>'"):
        masked(batch_of(tokenizer), Context(tokenizer=tokenizer), mask="<gap>")
    out = masked(batch_of(plain), Context(tokenizer=plain), mask="<|endoftext|>")
    assert (out["input_ids"][out["targets"] != UNTRAINED] == 0).any()
    with pytest.raises(UserError, match="no token that could be masked"):
        masked({"input_ids": torch.zeros(1, 4, dtype=torch.int64)}, Context(tokenizer=tokenizer))


def test_the_preview_shows_gaps_and_answers(tokenizer: Any) -> None:
    ctx = Context(tokenizer=tokenizer)
    text = MaskWords().preview(masked(batch_of(tokenizer), ctx), ctx)
    assert "<|mask|>" in text and "what is asked for" in text


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_a_rate_that_is_none(rate: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        MaskWords(rate=rate)
