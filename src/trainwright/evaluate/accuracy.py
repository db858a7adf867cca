"""How often a classifier is right on held-out documents.

    accuracy = documents whose most probable class is their label / documents
    F1 of a class = 2 TP / (2 TP + FP + FN),   macro_f1 = its mean over the classes

TP, FP and FN count documents that are of the class and taken for it, taken for it and not of it, and of it
and not taken for it. Macro F1 weighs rare classes like common ones; it is over the classes that documents
have or are taken for. Each document is read alone, up to ``length`` tokens. Measures what ``classifier`` has
learned.

Not for answers in words: those are tasks.

Errors: a model without a classifier; a corpus without labels, or with one that the classifier does not know.
"""
from __future__ import annotations

from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.method import Evaluator
from trainwright.corpus.inputs import Inputs
from trainwright.corpus.tokens import open_corpus, uniform
from trainwright.families import evaluating
from trainwright.lm.classes import class_logits, wanted


class Accuracy(Evaluator):
    """Measures ``accuracy`` and ``macro_f1``."""

    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    documents: int = 1000
    """How many at most, chosen by a hash of their ids."""
    length: int = 512
    """Tokens of a document at most; what is longer is cut."""
    batch_size: int = 32
    """Documents of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("masked_lm", "causal_lm")
    makes: ClassVar[tuple[str, ...]] = ("accuracy", "macro_f1")
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["text", "label"], "length": 24},
        {"use": "classifier", "classes": ["chat", "code", "prose"], "dropout": 0.0}, {"use": "label"})
    example: ClassVar[dict[str, Any]] = {"length": 24, "batch_size": 4}

    def __post_init__(self) -> None:
        if min(self.documents, self.batch_size) < 1 or self.length < 2:
            raise ValueError("documents and batch_size must be positive and length 2 or more, not "
                             f"{self.documents}, {self.batch_size} and {self.length}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        corpus = open_corpus(ctx.path("data"))
        tokenizer = None if corpus.tokenizer else ctx.tokenizer
        inputs = Inputs(corpus, ("text", "label"), self.length, tokenizer=tokenizer)
        found = corpus.examples(self.split, self.domains)
        order = np.argsort([uniform(name, "accuracy") for name in found.ids], kind="stable")
        chosen, right, said = np.sort(order[:self.documents]), [], []
        with evaluating(model), torch.no_grad():
            for numbers in np.array_split(chosen, -(-len(chosen) // self.batch_size)):
                made = inputs.batch(found.rows(numbers.tolist(), inputs.columns))
                batch = {n: torch.from_numpy(a).to(ctx.device) for n, a in made.items()}
                right.append(wanted(model, batch["labels"], corpus).cpu())
                said.append(class_logits(model, batch).argmax(1).cpu())
        truth, guess = torch.cat(right), torch.cat(said)
        return {"accuracy": float((truth == guess).float().mean()), "macro_f1": macro_f1(truth, guess)}


def macro_f1(truth: Tensor, guess: Tensor) -> float:
    """The mean F1 of the classes that occur in either; int64 [documents] both."""
    scores = []
    for one in torch.unique(torch.cat([truth, guess])):
        hit = ((truth == one) & (guess == one)).sum()
        scores.append(2 * hit / ((truth == one).sum() + (guess == one).sum()))
    return float(torch.stack(scores).mean())
