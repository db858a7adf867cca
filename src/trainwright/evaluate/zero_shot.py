"""How often a model names the class of a picture without having learned classes: by the most similar prompts.

"Learning Transferable Visual Models From Natural Language Supervision" (arXiv 2103.00020). The classes are
the domains of the corpus. With u the embedding of a picture, and w_c the mean of the embeddings of the
prompts of class c, scaled to length 1 (the paper's ensembling in embedding space),

    answer = argmax_c u . w_c
    accuracy/CLASS = share of the pictures of a class that are answered rightly
    accuracy/mean  = its mean over the classes;   chance/mean = 1 / classes
    accuracy/all   = share of all pictures;       chance/all  = share of the largest class

The prompts of a class are its words (default: its name) put into the templates. With n pictures of a class
the standard error of its accuracy p is sqrt(p (1 - p) / n).

Not for classes whose names say nothing of what is to be seen: give them ``words``.

Errors: fewer than two classes with pictures; words of a class that the corpus does not have; a template
without ``{}``; a model of another family.
"""
from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Evaluator
from trainwright.corpus.columns import DOMAIN
from trainwright.evaluate._pairs import held, image_embeddings, text_embeddings


class ZeroShot(Evaluator):
    """Measures ``accuracy`` of naming the class of held-out pictures, by class and on average."""

    templates: tuple[str, ...] = ("A picture of {}.",)
    """Prompts with ``{}`` in place of the words of a class."""
    words: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """What classes are called in prompts, such as ``{ plants = ["a tree", "a flower"] }``; default: their
    names."""
    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """The classes; all domains that have a picture by default."""
    data: str = ""
    """Which corpus, where ``from.data`` names several."""
    most: int = 10_000
    """Most pictures, drawn by their ids."""
    batch_size: int = 64
    """Pictures or prompts of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("image_text",)
    makes: ClassVar[tuple[str, ...]] = ("accuracy/*", "chance/all", "chance/mean")
    example: ClassVar[dict[str, Any]] = {}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "examples", "fields": ["image", "text"], "length": 24}, {"use": "clip"})

    def __post_init__(self) -> None:
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"templates have {{}} in place of the class, and {template!r} has none")
        if not self.templates or not all(self.words.values()):
            raise ValueError("templates names no prompt, or words none of a class")
        if self.most < 2 or self.batch_size < 1:
            raise ValueError("most must be 2 or more and batch_size positive, not "
                             f"{self.most} and {self.batch_size}")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        pictures = held(ctx, self.data, self.split, self.domains, self.most)
        counts = Counter(row[DOMAIN] for row in pictures.rows)
        classes = sorted(counts)
        if len(classes) < 2:
            raise UserError(f"zero_shot: the {self.split!r} documents have pictures of {len(classes)} "
                            "classes, and it takes two.")
        for name in self.words:
            if name not in pictures.corpus.domains:
                raise UserError(f"zero_shot: words names the class {name!r}, which the corpus does not "
                                f"have{suggest(name, pictures.corpus.domains)}.")
        prompts = [self.prompts(c) for c in classes]
        every = [prompt for of in prompts for prompt in of]
        found = text_embeddings(model, every, pictures, self.batch_size, ctx)
        means = [of.mean(0) for of in found.split([len(of) for of in prompts])]
        heads = F.normalize(torch.stack(means), dim=-1)
        answers = (image_embeddings(model, pictures, self.batch_size, ctx) @ heads.T).argmax(1).tolist()
        pairs = zip(pictures.rows, answers, strict=True)
        right = Counter(row[DOMAIN] for row, answer in pairs if classes[answer] == row[DOMAIN])
        shares = {c: right[c] / counts[c] for c in classes}
        return {f"accuracy/{c}": share for c, share in shares.items()} | {
            "accuracy/mean": sum(shares.values()) / len(classes), "chance/mean": 1 / len(classes),
            "accuracy/all": sum(right.values()) / len(answers),
            "chance/all": max(counts.values()) / len(answers)}

    def prompts(self, name: str) -> list[str]:
        """What a picture of a class may be called."""
        return [t.replace("{}", w) for w in self.words.get(name, (name,)) for t in self.templates]
