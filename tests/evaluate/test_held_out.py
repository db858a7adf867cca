"""Loss, perplexity and bits per byte by hand; nothing changes by measuring."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from tests.corpus.corpora import build, texts
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.held_out import HeldOut


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("held") / "corpus"
    build(place, texts(40, "a") + texts(40, "b"), tune=0.1, test=0.25)
    return place


def test_numbers_are_those_of_lone_documents(folder: Path):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).train()
    corpus = open_corpus(folder)
    with torch.no_grad():
        got = HeldOut(tokens=10**6, length=512, batch_size=3).measure(
            model, Context(inputs={"data": [folder]})
        )
        for domain in ("a", "b"):
            found, nats, tokens = corpus.select("test", (domain,)), 0.0, 0
            for s, o, n in zip(found.shard, found.offset, found.length, strict=True):
                ids = torch.tensor(corpus.read(int(s), int(o), int(n)))[None]
                nats += float(
                    F.cross_entropy(model(input_ids=ids).logits[0, :-1], ids[0, 1:], reduction="sum")
                )
                tokens += int(n) - 1
            assert math.isclose(got[f"loss/{domain}"], nats / tokens, rel_tol=1e-5)
            assert math.isclose(got[f"perplexity/{domain}"], math.exp(nats / tokens), rel_tol=1e-4)
            assert math.isclose(
                got[f"bits_per_byte/{domain}"], nats / math.log(2) / int(found.bytes.sum()), rel_tol=1e-5
            )
    assert model.training


def test_the_budget_takes_whole_documents_and_domains_must_be_there(folder: Path):
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    )
    ctx = Context(inputs={"data": [folder]})
    with torch.no_grad():
        assert set(HeldOut(domains=("a",), tokens=1).measure(model, ctx)) == {
            "loss/a",
            "perplexity/a",
            "bits_per_byte/a",
        }
    with pytest.raises(UserError, match="'c'"):
        HeldOut(domains=("c",)).measure(model, ctx)


def test_a_model_with_few_positions_is_measured_in_shorter_parts(folder: Path):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2, n_positions=8)).eval()
    ctx = Context(inputs={"data": [folder]})
    with torch.no_grad():
        assert HeldOut(tokens=100).measure(model, ctx) == HeldOut(tokens=100, length=8).measure(model, ctx)
