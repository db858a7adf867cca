"""A head that sorts documents into classes, on top of a language model.

As in "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv 1810.04805),
and as "Domain-Specific Language Model Pretraining for Biomedical Natural Language Processing" (arXiv
2007.15779) fine-tunes for sentence classification. With h_t [.., d] the model's last hidden states and T the
places that are no padding,

    s = h_1  (pool = "first"),   mean of h_t over T  ("mean"),   or h at the last place of T  ("last")
    logits [.., classes] = V dropout(tanh(W s + b)) + c

W, V are drawn from N(0, 0.02^2), b and c are 0. The whole model stays trainable. ``label`` is the objective
that trains it, ``accuracy`` measures it, ``examples`` makes the batches.

Models that read from left to right see nothing at the first place: they take "last" or "mean".

It cannot be folded in: the artifact has the language model in ``backbone/`` and the head in ``adapter/``;
later stages load both, transformers alone does not.

Errors: fewer than two classes, or one that is named twice; a second classifier on the same model.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch

from trainwright.core.method import Surgery
from trainwright.lm.classes import NAME, Head
from trainwright.lm.heads import PutsOnAHead


class Classifier(PutsOnAHead, Surgery):
    """A trained head on the state of one place, or on the mean of all."""

    classes: tuple[str, ...]
    """Names of the classes, as the documents' labels spell them."""
    pool: Literal["first", "mean", "last"] = "first"
    """Which of the last hidden states the head reads."""
    dropout: float = 0.1
    """Share of what the head's output layer reads that is dropped in training."""
    place: ClassVar[str] = NAME
    called: ClassVar[str] = "classifier"
    file: ClassVar[str] = "classifier.safetensors"
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["text", "label"], "length": 24}, {"use": "label"})
    example: ClassVar[dict[str, Any]] = {"classes": ["chat", "code", "prose"], "dropout": 0.0}

    def __post_init__(self) -> None:
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes must be two or more different names, not {list(self.classes)}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and less than 1, not {self.dropout}")

    def made(self, width: int, draw: torch.Generator) -> Head:
        return Head(width, self, draw)
