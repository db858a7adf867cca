"""Rows of single documents, their fields made into what a model reads: pairs, images with texts, classes.

    fields = ["text"]                  input_ids, attention_mask, targets, position_ids [R, L]
    fields = ["text", "label"]         the same, and labels [R]
    fields = ["image", "text"]         the same, and pixel_values [R, 3, H, W]
    fields = ["chosen", "rejected"]    chosen_ids, chosen_attention_mask, chosen_targets [R, L]; so rejected
    fields = [… , "reference"]         and chosen_reference, rejected_reference [R] (``reference_log_probs``)
    fields = ["text", "teacher"]       as text, and teacher_ids, teacher_logp [R, L, K] (``teacher_logits``)

R are the rows of this rank, L is ``length``; ``corpus/inputs.py`` says what stands where. Each epoch has
every document once, in an order that follows from seed and epoch alone. ``domain`` [R, L] (or [R] without
``text``) is the index into ``domains``.

Not for language modelling on text: ``pack`` puts several documents into a row and wastes no position. Not for
a corpus of images or long texts beyond memory on slow disks: rows are read one by one, in random order.

Errors: a field that no document of the corpus has, or that one of the chosen domains lacks; text in a corpus
without a tokenizer, for a model without one; ``length`` above the model's positions; no image size.
"""
from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.corpus.examples import Examples as Documents
from trainwright.corpus.inputs import IMAGE, Inputs
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.losses import most_positions

SURVEYED = 1000
"""Pairs that are looked at before training, for what a person should hear of them."""


class Examples(Data):
    """Rows of single documents with their fields as inputs."""

    fields: tuple[str, ...] = ("text",)
    """Any of text, label, number, image, chosen, rejected, reference, teacher."""
    length: int = 512
    """Tokens of a row at most; what is longer is cut."""
    split: Literal["train", "tune", "test"] = "train"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains to take; all of them by default."""
    ends: bool = True
    """Whether the token that ends an answer of a pair is learned; not where the pairs are steps of answers,
    which go on (``itool``)."""
    image_size: int | None = None
    """Pixels of an image's side; default: what the model reads."""
    example: ClassVar[dict[str, Any]] = {"length": 24}

    def __post_init__(self) -> None:
        if not self.fields or len(set(self.fields)) < len(self.fields):
            raise ValueError("fields names one field at least, and none twice")
        if not self.ends and ("chosen" not in self.fields or "reference" in self.fields):
            raise ValueError("ends = false goes with the fields chosen and rejected, and without reference, "
                             "which was asked of whole answers")
        if self.length < 2 or (self.image_size is not None and self.image_size < 1):
            raise ValueError("length must be 2 or more and image_size positive, not "
                             f"{self.length} and {self.image_size}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        self.inputs(model, ctx)
        most = most_positions(model) if families.is_pretrained(model) else None
        if most is not None and self.length > most and {"text", "chosen", "rejected"} & set(self.fields):
            raise UserError(f"{self.name}: length = {self.length} is more than the {most} positions of the "
                            "model (max_position_embeddings).")
        return {"shared": {"rows": 0}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        if not ctx.batch_rows:
            raise UserError(f"{self.name}: the stage must say how many rows a step has: batch_size or "
                            "batch_tokens.")
        found, first = self.documents(ctx), state["shared"]["rows"]
        numbers = [int(order(len(found), ctx.seed, n // len(found))[n % len(found)])
                   for n in range(first, first + ctx.batch_rows)[ctx.rows(ctx.batch_rows)]]
        state["shared"]["rows"] += ctx.batch_rows
        inputs = self.inputs(ctx.policy, ctx)
        made = inputs.batch(found.rows(numbers, inputs.columns))
        batch: Batch = {n: torch.from_numpy(a) for n, a in made.items()}
        for side in () if self.ends else ("chosen_targets", "rejected_targets"):
            learned = batch[side] != UNTRAINED
            batch[side][learned & (learned.cumsum(1) == learned.sum(1, keepdim=True))] = UNTRAINED
        domain = torch.from_numpy(found.domains[numbers])
        if "input_ids" in batch:
            domain = domain[:, None].expand(-1, self.length).contiguous()
            batch["document"] = batch["attention_mask"] - 1
        return batch | {"domain": domain, "domains": inputs.corpus.domains, "packed": False}

    def epoch(self, ctx: Context) -> int:
        return len(self.documents(ctx))

    def row_tokens(self) -> int | None:
        return self.length if "text" in self.fields else None

    def preview(self, batch: Batch, ctx: Context) -> str:
        tokenizer = open_corpus(ctx.path("data")).tokenizer or ctx.tokenizer
        told = [f"{name.removesuffix('_ids')}: {_shown(name, batch, tokenizer)}"
                for name in ("input_ids", "chosen_ids", "rejected_ids") if name in batch]
        told += [f"{name}: {batch[name][0].tolist()}" for name in ("labels", "numbers") if name in batch]
        told += [f"pixel_values: {tuple(batch['pixel_values'].shape[1:])}"] if "pixel_values" in batch else []
        if {"chosen", "rejected"} <= set(self.fields):
            found, inputs = self.documents(ctx), self.inputs(ctx.policy, ctx)
            told.append(str(inputs.survey(found.rows(range(min(SURVEYED, len(found))), inputs.columns))))
        return "an example, what is trained between ⟦ ⟧: " + "; ".join(told)

    def documents(self, ctx: Context) -> Documents:
        return documents_of(ctx.path("data"), self.split, self.domains)

    def inputs(self, model: nn.Module | None, ctx: Context) -> Inputs:
        """What makes inputs of documents, for this model."""
        tokenizer = None if open_corpus(ctx.path("data")).tokenizer else ctx.tokenizer
        return inputs_of(ctx.path("data"), self.fields, self.length, self._pictures(model), tokenizer)

    def _pictures(self, model: nn.Module | None) -> Any:
        if IMAGE not in self.fields:
            return None
        pretrained = model is not None and families.is_pretrained(model)
        if pretrained and "vision_config" in model.config.sub_configs:
            own = families.pictures(model)
            return own if self.image_size is None else own._replace(image_size=self.image_size)
        return None if self.image_size is None else families.Pictures(self.image_size)


@lru_cache(maxsize=4)
def order(many: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of so many documents in an epoch."""
    generator = Context(seed=seed).rng(f"examples/{epoch}", at=0)
    return torch.randperm(many, generator=generator).numpy()  # type: ignore[no-any-return]


@lru_cache(maxsize=16)
def documents_of(folder: Path, split: str, domains: tuple[str, ...]) -> Documents:
    """The documents of a selection, found once in a process."""
    return open_corpus(folder).examples(split, domains)


@lru_cache(maxsize=16)
def inputs_of(folder: Path, fields: tuple[str, ...], length: int, pictures: Any, tokenizer: Any) -> Inputs:
    """What makes inputs of the documents of a corpus, made once in a process."""
    return Inputs(open_corpus(folder), fields, length, pictures, tokenizer)


def _shown(name: str, batch: Batch, tokenizer: Any) -> str:
    """The first row of tokens as text, what is trained between ⟦ ⟧."""
    of = "" if name == "input_ids" else name.removesuffix("ids")
    seen: Tensor = batch[f"{of}attention_mask"][0] > 0
    ids, targets = batch[name][0][seen].tolist(), batch[f"{of}targets"][0][seen].tolist()
    learned = [False, *(t != UNTRAINED for t in targets[:-1])]
    first = learned.index(True) if True in learned else len(ids)
    last = len(ids) - learned[::-1].index(True) if True in learned else len(ids)
    parts = [tokenizer.decode(part).replace("\n", "⏎") for part in (ids[:first], ids[first:last], ids[last:])]
    return f"{parts[0]}⟦{parts[1]}⟧{parts[2]}"[:300]
