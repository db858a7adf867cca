"""Cross-entropy of labels: by names, one number a document."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.corpus.corpora import build, texts
from tests.finetune.test_classifier import BATCH, CLASSES, classified, made
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.finetune.classifier import Classifier
from trainwright.finetune.label import Label
from trainwright.lm.classes import class_logits, wanted


def corpus(folder: Path, *names: str | int) -> Context:
    """What a stage knows of a corpus whose documents have these labels."""
    rows = [row | {"columns": {"label": names[i % len(names)]}} for i, row in enumerate(texts(12, "mail"))]
    build(folder, rows)
    return Context(inputs={"data": [folder]})


LABELLED = BATCH | {"labels": torch.tensor([1, 0])}


def test_labels_are_meant_by_name(tmp_path: Path) -> None:
    """The corpus sorts its labels: neither, spam. The head has ham, spam, neither."""
    model, ctx = classified(Classifier(classes=CLASSES)), corpus(tmp_path / "c", "spam", "neither")
    losses = Label().loss(model, LABELLED, {}, ctx)
    right = torch.tensor([1, 2])
    assert torch.equal(losses, F.cross_entropy(class_logits(model, BATCH), right, reduction="none"))
    hits = (class_logits(model, BATCH).argmax(1) == right).float().mean()
    assert [(float(v), w) for v, w in ctx.notes["train_accuracy"]] == [(float(hits), 2)]
    assert Label().count(LABELLED) == 2


def test_labels_that_are_numbers_are_those_numbers(tmp_path: Path) -> None:
    model, ctx = classified(Classifier(classes=("5", "3", "4"))), corpus(tmp_path / "c", 3, 5)
    assert wanted(model, torch.tensor([5, 3, 5]), open_corpus(ctx.path("data"))).tolist() == [0, 1, 0]


def test_it_learns_what_it_is_shown(tmp_path: Path) -> None:
    model = classified(Classifier(classes=CLASSES, dropout=0.0))
    ctx = corpus(tmp_path / "c", "spam", "neither")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        Label().loss(model, LABELLED, {}, ctx).sum().backward()
        optimizer.step()
    assert class_logits(model, BATCH).argmax(1).tolist() == [1, 2]


def test_what_cannot_be_learned(tmp_path: Path) -> None:
    model = classified(Classifier(classes=CLASSES))
    with pytest.raises(UserError, match="the label 'eggs', and the classifier knows 'ham', 'spam', 'nei"):
        Label().loss(model, LABELLED, {}, corpus(tmp_path / "c", "eggs", "spam"))
    with pytest.raises(UserError, match="the batch has no labels"):
        Label().count(BATCH)
    for bare in (made(), nn.Linear(1, 1)):
        with pytest.raises(UserError, match="the model has no classes"):
            Label().init(bare, Context())
