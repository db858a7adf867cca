"""Accuracy and macro F1: as scikit-learn counts them, over held-out documents."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.corpus.corpora import build, texts
from tests.finetune.test_classifier import SIZES
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus, uniform
from trainwright.evaluate.accuracy import Accuracy, macro_f1
from trainwright.finetune.classifier import Classifier
from trainwright.lm.classes import head_of

CLASSES = ("ham", "spam")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    """Of a corpus of which every third document is spam."""
    given = enumerate(texts(90, "mail"))
    rows = [row | {"columns": {"label": "ham" if i % 3 else "spam"}} for i, row in given]
    build(tmp_path / "c", rows, tune=0.1, test=0.3)
    return Context(inputs={"data": [tmp_path / "c"]}, tokenizer=open_corpus(tmp_path / "c").tokenizer)


def answering(ctx: Context, always: str) -> Any:
    """A classifier that says one class of everything."""
    table = {"type": "bert", "max_position_embeddings": 64} | SIZES | {"vocab_size": len(ctx.tokenizer)}
    model = families.create(families.from_table(table, None, "here"), 0, "here")
    Classifier(classes=CLASSES).operate(model, ctx)
    head = head_of(model)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.copy_(torch.tensor([float(always == name) for name in CLASSES]))
    return model.train()


def test_one_answer_for_all_is_right_as_often_as_it_is_the_label(ctx: Context) -> None:
    corpus = open_corpus(ctx.path("data"))
    found = corpus.examples("test")
    labels = [row["label"] for row in found.rows(range(len(found)), ["label"])]
    share = labels.count("spam") / len(labels)
    assert 0 < share < 0.6 and len(labels) > 9
    for always, right in (("spam", share), ("ham", 1 - share)):
        model = answering(ctx, always)
        numbers = Accuracy(length=24, batch_size=4).measure(model, ctx)
        assert numbers["accuracy"] == pytest.approx(right)
        assert numbers["macro_f1"] == pytest.approx(right / (1 + right)), "the other class has an F1 of 0"
        assert model.training


def test_some_documents_are_chosen_whatever_the_order_of_their_ids(ctx: Context) -> None:
    found = open_corpus(ctx.path("data")).examples("test")
    order = np.argsort([uniform(name, "accuracy") for name in found.ids])[:5]
    labels = [row["label"] for row in found.rows(order.tolist(), ["label"])]
    few = Accuracy(length=24, documents=5).measure(answering(ctx, "spam"), ctx)
    assert few["accuracy"] == pytest.approx(labels.count("spam") / 5) and set(order) != set(range(5))


def test_macro_f1_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    draw = torch.Generator().manual_seed(0)
    for classes in (2, 5):
        truth, guess = (torch.randint(classes, (50,), generator=draw) for _ in range(2))
        assert macro_f1(truth, guess) == pytest.approx(metrics.f1_score(truth, guess, average="macro"))
    assert macro_f1(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 2])) == 1.0


def test_a_model_without_classes_and_a_corpus_without_labels(ctx: Context, tmp_path: Path) -> None:
    model = answering(ctx, "ham")
    del model.class_head
    with pytest.raises(UserError, match="the model has no classes"):
        Accuracy(length=24).measure(model, ctx)
    build(tmp_path / "plain", texts(20, "mail"), test=0.3)
    with pytest.raises(UserError, match="no document of the corpus plain has a label"):
        Accuracy(length=24).measure(model, Context(inputs={"data": [tmp_path / "plain"]}))


@pytest.mark.parametrize("change", [{"documents": 0}, {"batch_size": 0}, {"length": 1}])
def test_numbers_that_are_too_small(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be positive and length 2 or more"):
        Accuracy(**change)
