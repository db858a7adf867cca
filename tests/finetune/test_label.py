"""Cross-entropy of labels: by names, one number a document, nothing for those without."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.finetune.test_classifier import BATCH, CLASSES, classified, made
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.classifier import Classifier
from trainwright.finetune.label import Label
from trainwright.lm.classes import class_logits

LABELLED = BATCH | {"label": torch.tensor([1, 0]), "classes": ("neither", "spam")}
"""The documents' classes are in another order than the head's, and fewer."""


def test_labels_are_meant_by_name() -> None:
    model, ctx = classified(Classifier(classes=CLASSES)), Context()
    losses = Label().loss(model, LABELLED, {}, ctx)
    wanted = F.cross_entropy(class_logits(model, BATCH), torch.tensor([1, 2]), reduction="none")
    assert losses.shape == (2,) and torch.equal(losses, wanted) and Label().count(LABELLED) == 2
    hits = (class_logits(model, BATCH).argmax(1) == torch.tensor([1, 2])).float().mean()
    assert [(float(v), w) for v, w in ctx.notes["train_accuracy"]] == [(float(hits), 2.0)]


def test_documents_without_a_label_teach_nothing() -> None:
    model = classified(Classifier(classes=CLASSES))
    batch = LABELLED | {"label": torch.tensor([-100, 0])}
    losses = Label().loss(model, batch, {}, Context())
    assert losses[0] == 0 and losses[1] > 0 and Label().count(batch) == 1
    none = LABELLED | {"label": torch.tensor([-100, -100])}
    assert not Label().loss(model, none, {}, Context()).any() and Label().count(none) == 0


def test_it_learns_what_it_is_shown() -> None:
    model = classified(Classifier(classes=CLASSES, dropout=0.0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        Label().loss(model, LABELLED, {}, Context()).sum().backward()
        optimizer.step()
    assert class_logits(model, BATCH).argmax(1).tolist() == [1, 2]


def test_what_cannot_be_learned() -> None:
    model = classified(Classifier(classes=CLASSES))
    with pytest.raises(UserError, match="the label 'eggs', and the classifier knows 'ham', 'spam', "
                                        "'neither'"):
        Label().loss(model, LABELLED | {"classes": ("eggs", "spam")}, {}, Context())
    with pytest.raises(UserError, match="the batch has no labels"):
        Label().count(BATCH)
    for bare in (made(), nn.Linear(1, 1)):
        with pytest.raises(UserError, match="the model has no classes"):
            Label().init(bare, Context())
