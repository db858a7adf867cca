from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.corpus.corpora import build
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.membership import Membership


def small() -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=400, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("members") / "corpus"
    draw = np.random.default_rng(0)
    rows = [{"id": str(i), "text": " ".join(draw.choice(list("abcdefgh"), 12))} for i in range(40)]
    build(place, rows, tune=0.0, test=0.5)
    return place


def test_every_attack_has_its_numbers(folder: Path) -> None:
    """Of a model that has read nothing: chance, by the loss and by the control alike."""
    torch.manual_seed(0)
    model, every = small(), ("loss", "zlib", "neighbour", "words", "reference")
    ctx = Context(inputs={"data": [folder]}, frozen={"reference": small()})
    with torch.no_grad():
        told = Membership(attacks=every, documents=12).measure(model, ctx)
    names = {"membership", *(f"membership_{name}" for name in every[1:])}
    assert set(told) == {f"{n}_{what}{end}/d" for n in names for what in ("auc", "tpr1", "tpr5")
                         for end in ("", "_low", "_high")}
    for name in ("membership", "membership_words"):
        assert told[f"{name}_auc_low/d"] < 0.5 < told[f"{name}_auc_high/d"]
    with pytest.raises(UserError, match="no 'tune' document"):
        Membership(attacks=("recall",), documents=4).measure(model, ctx)
    assert Membership(attacks=("reference",)).asks() and not Membership().asks()


@pytest.mark.slow
def test_what_was_learned_by_heart_is_told_from_what_was_not(folder: Path) -> None:
    """Random words: nothing but memory lowers their loss."""
    torch.manual_seed(0)
    model, ctx = small(), Context(inputs={"data": [folder]})
    corpus = open_corpus(folder)
    with torch.no_grad():
        before = Membership(documents=100, batch_size=7).measure(model, ctx)["membership_auc/d"]
    members = corpus.select("train")
    step = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(40):
        for s, o, n in zip(members.shard, members.offset, members.length, strict=True):
            ids = torch.tensor(corpus.read(int(s), int(o), int(n)))[None]
            step.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            step.step()
    with torch.no_grad():
        after = Membership(documents=100, batch_size=7).measure(model, ctx)["membership_auc/d"]
    assert 0.25 < before < 0.75 and after > 0.9


def test_a_domain_without_test_documents_is_told(tmp_path: Path) -> None:
    build(tmp_path / "c", [{"id": str(i), "text": f"number {i}"} for i in range(8)], tune=0.0, test=0.0)
    with pytest.raises(UserError, match="no 'test' document"):
        Membership().measure(small(), Context(inputs={"data": [tmp_path / "c"]}))
