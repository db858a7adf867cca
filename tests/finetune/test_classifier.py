"""A head on a language model: what it reads, where it starts, and that a later stage has it again."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.classifier import Classifier
from trainwright.finetune.lora import Lora
from trainwright.lm.classes import class_logits, head_of, pooled

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "vocab_size": 50}
CLASSES = ("ham", "spam", "neither")
IDS = torch.arange(24).reshape(2, 12) * 7 % 50
THERE = (torch.arange(12) < torch.tensor([[12], [5]])).long()
BATCH = {"input_ids": IDS, "attention_mask": THERE}


def made(kind: str = "bert") -> nn.Module:
    return families.create(families.from_table({"type": kind} | SIZES, None, "here"), 0, "here").eval()


def classified(method: Classifier, kind: str = "bert") -> nn.Module:
    model = made(kind)
    method.operate(model, Context(seed=4))
    return model.eval()


@pytest.mark.parametrize("pool", ["first", "mean", "last"])
def test_logits_by_hand(pool: str) -> None:
    model, plain = classified(Classifier(classes=CLASSES, pool=pool)), made()
    hidden = plain.bert(input_ids=IDS, attention_mask=THERE)[0]
    state = {"first": hidden[:, 0], "last": torch.stack([hidden[0, 11], hidden[1, 4]]),
             "mean": torch.stack([hidden[0].mean(0), hidden[1, :5].mean(0)])}[pool]
    head = head_of(model)
    wanted = head.out(torch.tanh(head.dense(state)))
    assert torch.allclose(class_logits(model, BATCH), wanted, atol=1e-6) and wanted.shape == (2, 3)


def test_padding_is_not_read() -> None:
    """Neither by the head nor, for a model that reads both ways, by the body."""
    for kind, pool in (("bert", "mean"), ("llama", "last")):
        model = classified(Classifier(classes=CLASSES, pool=pool), kind)
        other = torch.where(THERE.bool(), IDS, 3)
        one, two = class_logits(model, BATCH), class_logits(model, BATCH | {"input_ids": other})
        assert torch.allclose(one, two, atol=1e-6)


def test_pooling_of_an_empty_row_is_finite() -> None:
    hidden, none = torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64)
    assert all(torch.isfinite(pooled(hidden, none, how)).all() for how in ("first", "mean", "last"))


def test_the_start_depends_on_the_seed_alone_and_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(9)
    one = classified(Classifier(classes=CLASSES))
    torch.manual_seed(8)
    two = classified(Classifier(classes=CLASSES))
    assert torch.equal(head_of(one).dense.weight, head_of(two).dense.weight)
    assert 0.01 < float(head_of(one).dense.weight.detach().std()) < 0.03 and not head_of(one).out.bias.any()
    assert torch.equal(one(**BATCH).logits, made()(**BATCH).logits)
    assert all(p.requires_grad for p in one.parameters())


def test_an_adapter_leaves_the_head_trainable() -> None:
    model = classified(Classifier(classes=CLASSES), "llama")
    Lora(rank=2).operate(model, Context(seed=1))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {"class_head.dense.weight", "class_head.out.bias"} < trained
    assert "model.embed_tokens.weight" not in trained


def test_a_later_stage_has_the_head_again(tmp_path: Path) -> None:
    method = Classifier(classes=CLASSES)
    model = classified(method)
    with torch.no_grad():
        for p in head_of(model).parameters():
            p.add_(0.3)
    logits = class_logits(model, BATCH)
    assert families.write(model, [method], 4, tmp_path, None) == ["classifier"]
    assert not any(n == "class_head" for n, _ in model.named_children()), "the model that is written is plain"
    loaded = families.load(tmp_path, "here").eval()
    assert torch.equal(class_logits(loaded, BATCH), logits) and head_of(loaded).settings == method
    with pytest.raises(UserError, match="has a classifier already"):
        method.operate(loaded, Context())


def test_what_is_no_classifier() -> None:
    for classes in (("ham",), ("ham", "ham")):
        with pytest.raises(ValueError, match="two or more different names"):
            Classifier(classes=classes)
    with pytest.raises(UserError, match="the model has no classes"):
        class_logits(made(), BATCH)
