"""Pictures and texts of a corpus where a model of both puts them: what retrieval and zero_shot share."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.corpus import media
from trainwright.corpus.columns import DOMAIN, ID, MESSAGES, TEXT
from trainwright.corpus.inputs import IMAGE, Inputs
from trainwright.corpus.tokens import Corpus, open_corpus, uniform
from trainwright.families import evaluating


class Held(NamedTuple):
    """Documents with a picture, in an order that follows from their ids."""

    corpus: Corpus
    rows: list[dict[str, Any]]

    def file(self, number: int) -> Path:
        """The picture of a document."""
        return media.path(self.corpus.folder / media.FOLDER, self.rows[number][IMAGE])


def held(ctx: Context, data: str, split: str, domains: Sequence[str], most: int) -> Held:
    """At most so many documents of a split that have a picture, drawn by their ids."""
    corpus = open_corpus(ctx.path("data", data))
    found = corpus.examples(split, tuple(domains))
    rows = found.rows(range(len(found)), (ID, TEXT, MESSAGES, DOMAIN, IMAGE))
    drawn = sorted((r for r in rows if r[IMAGE] is not None), key=lambda r: uniform(r[ID], "pictures"))
    return Held(corpus, drawn[:most])


def image_embeddings(model: nn.Module, of: Held, batch_size: int, ctx: Context) -> Tensor:
    """[documents, d]: where their pictures lie."""
    inputs, out = Inputs(of.corpus, (IMAGE,), 1, families.pictures(model)), []
    with evaluating(model), torch.no_grad():
        for at in range(0, len(of.rows), batch_size):
            pixels = inputs.batch(of.rows[at:at + batch_size])["pixel_values"]
            out.append(families.image_embeddings(model, torch.from_numpy(pixels).to(ctx.device)))
    return torch.cat(out)


def text_embeddings(model: nn.Module, texts: Sequence[str], of: Held, batch_size: int,
                    ctx: Context) -> Tensor:
    """[texts, d]: where texts lie."""
    longest = families.positions_of(families.made_from(model)) or 77
    inputs, out = Inputs(of.corpus, (TEXT,), longest, tokenizer=ctx.tokenizer), []
    rows = [{ID: text, TEXT: text, MESSAGES: None} for text in texts]
    with evaluating(model), torch.no_grad():
        for at in range(0, len(rows), batch_size):
            made = inputs.batch(rows[at:at + batch_size])
            ids, there = (torch.from_numpy(made[n]).to(ctx.device) for n in ("input_ids", "attention_mask"))
            out.append(families.text_embeddings(model, ids, there))
    return torch.cat(out)
