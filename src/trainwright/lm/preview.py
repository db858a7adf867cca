"""One example of a batch as a person would read it."""
from __future__ import annotations

from itertools import groupby
from typing import Any

from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.core.shown import plain

MOST, RUN = 600, 200
"""Characters of the whole, and of a stretch of text that is all trained or all not."""


def preview(batch: Batch, tokenizer: Any) -> str:
    """The first row that trains anything, decoded: what is trained stands between ⟦ ⟧,
    documents are parted by │."""
    if tokenizer is None:
        raise UserError("the corpus has tokens and no tokenizer.json that says what they mean: it is not "
                        "whole.")
    trained = (batch["targets"] != UNTRAINED).any(1).nonzero()
    if not len(trained):
        return "(no token of this batch is trained)"
    row = int(trained[0])
    ids, targets, documents = (batch[n][row].tolist() for n in ("input_ids", "targets", "document"))
    told = []
    for number, places in groupby(range(len(ids)), key=documents.__getitem__):
        if number >= 0:
            told.append(_document([ids[i] for i in places], targets, documents.index(number), tokenizer))
    text = " │ ".join(told)
    return text if len(text) <= MOST else text[: MOST - 2] + " …"


def _document(tokens: list[int], targets: list[int], start: int, tokenizer: Any) -> str:
    """A document's tokens, and the target of its last position if it has one: nothing
    else reads that token."""
    learned = [False] + [t != UNTRAINED for t in targets[start : start + len(tokens)]]
    if learned[-1]:
        tokens = [*tokens, targets[start + len(tokens) - 1]]
    out = []
    for marked, group in groupby(zip(learned, tokens, strict=False), key=lambda pair: pair[0]):
        text = plain(tokenizer.decode([token for _, token in group]).replace("\n", "⏎"))
        if len(text) > RUN:
            text = f"{text[: RUN // 2]} … {text[-RUN // 2 :]}"
        out.append(f"⟦{text}⟧" if marked else text)
    return "".join(out)
