"""MeCo: each text is read after its metadata (a URL, a source), except in the last part of training.

"Metadata Conditioning Accelerates Language Model Pre-training" (arXiv 2501.01956). Until the last
``cooldown`` of the steps a text is read as

    [beginning-of-text]  metadata  text        with metadata such as "URL: en.wikipedia.org" and a blank line

and then as it is. Metadata are not learned: neither they nor the beginning-of-text token are targets; the
text's first token is one, predicted from the last of the metadata. Learning-rate schedules continue over
both parts: a new schedule for the cool-down would be more annealing, and dropping metadata at random all
along another method. The paper uses the host of the URL and 10 % of the steps. The trained model can be
asked for one kind of text with the same words in front, true or made up.

Put it after ``pack`` (or what replaces it). A document that continues in another row gets its metadata
there too, since it cannot see the row before. What the metadata push over the end of a row is dropped: as
in the paper it counts as tokens of the budget, and the model sees less of the texts (the log has
``metadata_share``). Rows should be long compared with the metadata. Evaluation on plain text needs no
change. Within a single pass the cool-down's texts are new ones, as they should be. Documents without the
field get no metadata.

Not for corpora in which the field is the same for all texts, or in which the texts say it anyway.

Errors: no document has the field; a template without ``{}``; metadata that fill a row; rows not from a
corpus. State: none. """
from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.metadata import metadata_of, tokens_of
from trainwright.lm.rows import SHARD
from trainwright.lm.schedules import check_parts, check_room, steps_of

EMPTY = {"input_ids": 0, "targets": UNTRAINED, "document": -1, "address": -1}
"""What stands in a row where there is no text."""
Text = dict[str, NDArray[np.int64]]
"""The entries of ``EMPTY`` for one text, or one row."""


class Meco(Data):
    """Puts metadata in front of each text, except in the last steps."""

    field: str = "url"
    """Field of a document that is read: ``domain``, ``source``, or a key of its metadata; of a URL the
    host."""
    template: str = "URL: {}\n\n"
    """Text in front; ``{}`` stands for the field."""
    cooldown: int | float = 0.1
    """The last part, without metadata: a share of the stage's steps (0.2, 1.0) or a number of
    steps (20)."""
    example: ClassVar[dict[str, Any]] = {"field": "domain", "template": "{}: ", "cooldown": 2}

    def __post_init__(self) -> None:
        if "{}" not in self.template:
            raise ValueError(f"template must have {{}} where the metadata go, not {self.template!r}")
        check_parts(cooldown=self.cooldown)

    def init(self, model: nn.Module, ctx: Context) -> State:
        check_room(self.name, ctx, cooldown=self.cooldown)
        metadata_of(ctx.path("data"), self.field)
        return {}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch = pull()
        if ctx.step >= ctx.steps - steps_of(self.cooldown, ctx.steps):
            return batch
        if "address" not in batch:
            raise UserError("meco: the rows do not say where in the corpus they are from: put it behind "
                            "pack.")
        old = {n: batch[n].numpy() for n in EMPTY}
        new = {n: np.full_like(old[n], empty) for n, empty in EMPTY.items()}
        rows, length = old["document"].shape
        places = np.tile(np.arange(length), (rows, 1))
        for r in range(rows):
            at = 0
            for text in texts({n: values[r] for n, values in old.items()}):
                for n, values in self.conditioned(text, length, ctx).items():
                    end = min(length, at + len(values))
                    new[n][r, at:end] = values[:end - at]
                places[r, at:] = np.arange(length - at)
                at = end
        ctx.note("metadata_share", float(((new["address"] < 0) & (new["document"] >= 0)).mean()))
        return batch | {n: torch.from_numpy(values) for n, values in (new | {"position_ids": places}).items()}

    def conditioned(self, text: Text, length: int, ctx: Context) -> Text:
        """A text of a row, behind its metadata."""
        folder, address = ctx.path("data"), int(text["address"][0])
        known = metadata_of(folder, self.field)
        document = known.document(address)
        if known.which[document] < 0:
            return text
        metadata = np.array(tokens_of(folder, self.field, self.template)[known.which[document]])
        if len(metadata) + 2 > length:
            raise UserError(f"meco: the metadata {known.said[known.which[document]]!r} are {len(metadata)} "
                            f"tokens long, which leaves no room in rows of {length}; take a shorter field or "
                            "template, or longer rows.")
        begins, read = address == known.starts[document], text["input_ids"][0]
        lead = int(begins and ctx.tokenizer is not None and read == ctx.tokenizer.bos_token_id)
        if lead:
            first = text["targets"][0]
        # the rest of a document was predicted in the row before
        else:
            learned = begins and open_corpus(folder).read_mask(*divmod(address, SHARD), 1)[0]
            first = read if learned else UNTRAINED
        silent = [UNTRAINED] * (lead + len(metadata) - 1)
        inside = {"input_ids": metadata, "document": np.full(len(metadata), text["document"][0]),
                  "address": np.full(len(metadata), -1)}
        made = {n: np.concatenate([text[n][:lead], told, text[n][lead:]]) for n, told in inside.items()}
        return made | {"targets": np.concatenate([silent, [first], text["targets"][lead:]]).astype(np.int64)}


def texts(row: Text) -> Iterator[Text]:
    """The texts of a row, without its padding."""
    document = row["document"]
    edges = [0, *(np.flatnonzero(np.diff(document)) + 1), len(document)]
    for begin, end in pairwise(edges):
        if document[begin] >= 0:
            yield {n: values[begin:end] for n, values in row.items()}
