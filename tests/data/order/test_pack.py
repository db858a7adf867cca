"""Packing: documents in a row do not see each other, every target comes once an epoch, ranks share one
order."""
from __future__ import annotations

import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tests.corpus.corpora import build, texts
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.pack import Pack
from trainwright.lm.losses import token_losses
from trainwright.lm.rows import SHARD, best_fit

MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(vocab_size=400, hidden_size=32, intermediate_size=64,
                                                  num_hidden_layers=2,
                                                  num_attention_heads=4, num_key_value_heads=2,
                                                  max_position_embeddings=128)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(vocab_size=400, hidden_size=32, intermediate_size=64,
                                                  num_hidden_layers=2,
                                                  num_attention_heads=4, num_key_value_heads=2,
                                                  max_position_embeddings=128)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=32, n_layer=2, n_head=4,
                                               n_positions=128))}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pack") / "corpus"
    build(place, texts(60, "a") + texts(20, "b"), tune=0.1, test=0.1)
    return place


def context(folder: Path, rows: int = 4, **more: Any) -> Context:
    return Context(inputs={"data": [folder]}, batch_rows=rows, **more)


def pull(method: Pack, ctx: Context, steps: int) -> list[dict[str, Any]]:
    state = method.init(torch.nn.Identity(), ctx)
    return [method.next(None, state, ctx) for _ in range(steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_changing_a_document_changes_nothing_in_the_next_one(name: str, folder: Path):
    model = MODELS[name]().eval()
    (batch,) = pull(Pack(length=64), context(folder, rows=2), 1)
    assert batch["document"].max() >= 1
    with torch.no_grad():
        before = token_losses(model, batch, Context())
        changed = dict(batch, input_ids=torch.where(batch["document"] == 0, (batch["input_ids"] + 7) % 400,
                                                    batch["input_ids"]))
        after = token_losses(model, changed, Context())
        logits = [model(input_ids=b["input_ids"], position_ids=b["position_ids"], use_cache=False).logits
                  for b in (batch, changed)]
    others = batch["document"] != 0
    assert torch.equal(before[others], after[others]) and not torch.equal(before, after)
    assert torch.equal(logits[0][others], logits[1][others])


@pytest.mark.parametrize("name", MODELS)
def test_a_packed_document_has_the_loss_of_a_lone_one(name: str, folder: Path):
    model = MODELS[name]().eval()
    (batch,) = pull(Pack(length=64), context(folder, rows=2), 1)
    with torch.no_grad():
        packed = token_losses(model, batch, Context())
        for r in range(2):
            for d in range(int(batch["document"][r].max()) + 1):
                at = batch["document"][r] == d
                alone = {k: batch[k][r, at][None] for k in ("input_ids", "targets", "position_ids")}
                assert torch.allclose(token_losses(model, alone, Context())[0], packed[r, at], atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_an_epoch_has_every_target_once(whole: bool, folder: Path):
    method, ctx = Pack(length=48, whole=whole), context(folder, rows=1)
    ctx.batch_rows = method.epoch(ctx)
    (batch,) = pull(method, ctx, 1)
    corpus = open_corpus(folder)
    found = corpus.select("train")
    wanted: Counter[tuple[int, int]] = Counter()
    for shard, offset, length in zip(found.shard, found.offset, found.length, strict=True):
        tokens = corpus.read(int(shard), int(offset), int(length)).tolist()
        pairs = list(pairwise(tokens))
        wanted.update(pairs[:48] if whole else pairs)
    learned = batch["targets"] != -100
    assert Counter(zip(batch["input_ids"][learned].tolist(), batch["targets"][learned].tolist(),
                       strict=True)) == wanted


def test_two_ranks_read_the_rows_of_one(folder: Path, monkeypatch: pytest.MonkeyPatch):
    method = Pack(length=32)
    one = pull(method, context(folder, rows=6), 5)
    parts = []
    for rank in (0, 1):
        monkeypatch.setattr(sharding, "world", lambda: 2)
        monkeypatch.setattr(sharding, "rank", lambda rank=rank: rank)
        parts.append(pull(method, context(folder, rows=6), 5))
    for whole, a, b in zip(one, *parts, strict=True):
        assert torch.equal(whole["input_ids"], torch.cat([a["input_ids"], b["input_ids"]]))


def test_addresses_say_where_in_the_corpus_a_token_lies(folder: Path):
    (batch,) = pull(Pack(length=64, whole=True), context(folder, rows=4), 1)
    inside = batch["document"] >= 0
    places = [divmod(a, SHARD) for a in batch["address"][inside].tolist()]
    assert [int(open_corpus(folder).read(*place, 1)[0])
            for place in places] == batch["input_ids"][inside].tolist()
    assert not inside.all() and torch.equal(batch["address"] < 0, ~inside)


def test_rows_follow_the_mixture(folder: Path):
    method, ctx = Pack(length=16), context(folder, rows=500)
    ctx.knobs["mixture"] = {"a": 1.0, "b": 3.0}
    (batch,) = pull(method, ctx, 1)
    share = float((batch["domain"][:, 0] == batch["domains"].index("b")).float().mean())
    assert abs(share - 0.75) < 0.06
    ctx.knobs["mixture"] = {"a": 1.0, "c": 1.0}
    with pytest.raises(UserError, match="'c'"):
        pull(method, ctx, 1)


def test_epochs_differ_and_a_seed_repeats(folder: Path):
    method, ctx = Pack(length=32), context(folder)
    ctx.batch_rows = method.epoch(ctx)
    first, second = pull(method, ctx, 2)
    again = pull(method, context(folder, rows=ctx.batch_rows), 1)[0]
    other = pull(method, context(folder, rows=ctx.batch_rows, seed=1), 1)[0]
    assert torch.equal(first["input_ids"], again["input_ids"])
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert not torch.equal(first["input_ids"], other["input_ids"])


def test_best_fit_fills_the_fullest_bin_that_has_room():
    assert best_fit(np.array([6, 5, 4, 3, 2]), 10).tolist() == [0, 1, 0, 1, 1]
    sizes = np.sort(np.random.default_rng(0).integers(1, 513, 20_000))[::-1]
    bins = best_fit(sizes, 512)
    load = np.bincount(bins, weights=sizes)
    assert load.max() <= 512 and load.mean() > 0.99 * 512


def test_what_cannot_be_packed_is_said(folder: Path):
    with pytest.raises(UserError, match="domain"):
        pull(Pack(domains=("code",)), context(folder), 1)
    with pytest.raises(UserError, match="batch_tokens"):
        pull(Pack(), context(folder, rows=0), 1)
    with pytest.raises(UserError, match="128 positions"):
        Pack(length=256).init(MODELS["llama"](), context(folder))


@pytest.mark.parametrize("whole", [False, True])
def test_rows_of_one_document_have_every_target_once_and_need_no_mask(whole: bool, folder: Path):
    method, ctx = Pack(length=24, isolate="rows", whole=whole), context(folder)
    ctx.batch_rows = method.epoch(ctx)
    (batch,) = pull(method, ctx, 1)
    sizes = open_corpus(folder).select("train").length - 1
    assert not batch["packed"] and int(batch["document"].max()) == 0
    assert torch.equal(batch["position_ids"], torch.arange(24).expand(ctx.batch_rows, 24))
    assert int((batch["targets"] != -100).sum()) == int(np.minimum(sizes, 24).sum() if whole else sizes.sum())


def test_answers_that_are_cut_away_are_counted_and_left_out(tmp_path: Path):
    long = "word " * 60
    turns = [("Short?", "Yes."), (long, "Too late."), ("Long?", long)]
    chats = [{"id": str(i), "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
             for i, (q, a) in enumerate(turns * 4)]
    build(tmp_path / "c", chats, chat_template="chatml", tune=0.0, test=0.0)
    method, ctx = Pack(length=48), context(tmp_path / "c", rows=2)
    (batch,) = pull(method, ctx, 1)
    rows = method.rows(ctx)
    assert (rows.truncated, rows.lost, rows.untrained) == (8, 4, 0)
    assert {name: pairs[0][0]
            for name, pairs in ctx.notes.items()} == {"truncated_documents": 8.0, "lost_documents": 4.0}
    told = method.preview(batch, ctx)
    assert "8 documents are cut after 48 tokens" in told and "4 of them lose all" in told and "⟦" in told
    ctx.batch_rows = method.epoch(ctx)
    (batch,) = pull(method, ctx, 1)
    for r in range(len(batch["targets"])):
        for d in range(int(batch["document"][r].max()) + 1):
            assert (batch["targets"][r][batch["document"][r] == d] != -100).any()
    with pytest.raises(UserError, match="first 4 tokens"):
        pull(Pack(length=4), ctx, 1)


def test_packing_many_documents_is_quick():
    """A bin costs one shift: a hundred thousand documents take a part of a second, not minutes. The limit
    is generous."""
    sizes = np.sort(np.random.default_rng(0).integers(1, 2049, 100_000))[::-1]
    began = time.process_time()
    best_fit(sizes, 2048)
    assert time.process_time() - began < 10
