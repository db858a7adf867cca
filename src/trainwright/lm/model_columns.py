"""Columns that a model makes of documents once and for all, for stages that would have to ask it again and
again."""
from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import torch
from torch import nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.columns import PROMPT
from trainwright.corpus.inputs import Inputs
from trainwright.corpus.selecting import attach, columns, settled
from trainwright.corpus.tokens import open_corpus

if TYPE_CHECKING:
    from daft import DataFrame, Expression

READ = "read_"
Told = Callable[[nn.Module, dict[str, Any], Context], Iterator[str]]
"""From the model and a batch (``Inputs.batch`` as tensors on the device) to a string for each row."""


class Asking(NamedTuple):
    """What a model is asked."""

    who: str
    """The method's name, for messages."""
    column: str
    """The column that is made."""
    fields: tuple[str, ...]
    """What the model reads of a document (``corpus/inputs.py``)."""
    length: int
    """Tokens of a row."""
    batch_tokens: int
    """Tokens of a forward pass, roughly."""
    what: str = "document to read"
    """What there must be at least one of."""
    prompt: str | None = None
    """A column of prompts that the model reads in place of a pair's own: its batch then has the same
    inputs a second time, made with them, under names that begin with ``READ``."""


def column_of(documents: DataFrame, ctx: Context, asking: Asking, which: Expression,
              told: Told) -> DataFrame:
    """``documents`` with a column of strings that ``from.model`` makes of those for which ``which`` holds;
    the others, and those that are held out, have null.

    Raises:
        UserError: the corpus was tokenized by another tokenizer than the model's; no such document.
    """
    rows, folder = settled(documents, ctx), ctx.path("model")
    corpus, own = open_corpus(ctx.path("data")), families.load_tokenizer(folder, asking.who)
    theirs = corpus.tokenizer
    if own is not None and theirs is not None and own.get_vocab() != theirs.get_vocab():
        raise UserError(f"{asking.who}: the corpus was tokenized by another tokenizer than the model's "
                        "own: make it with from = { tokenizer = … } of the model's stage.")
    inputs = Inputs(corpus, asking.fields, asking.length, tokenizer=own)
    other = () if asking.prompt is None else (asking.prompt,)
    if missing := [name for name in other if name not in rows.column_names]:
        raise UserError(f"{asking.who}: the documents have no column {missing[0]!r}: long_pairs writes it.")
    table = columns(rows.where(which), *inputs.columns, *other)
    if not len(table):
        raise UserError(f"{asking.who}: no document that came in is a {asking.what}.")
    found = table.sort_by("id").to_pylist()
    model = families.load(folder, asking.who).to(ctx.device).eval().requires_grad_(False)
    many = max(1, asking.batch_tokens // (len(asking.fields) * asking.length))
    said: list[str] = []
    for at in range(0, len(found), many):
        part = found[at:at + many]
        made = inputs.batch(part)
        if asking.prompt is not None:
            read = inputs.batch([row | {PROMPT: row[asking.prompt]} for row in part])
            made |= {f"{READ}{name}": array for name, array in read.items()}
        said += told(model, {n: torch.from_numpy(a).to(ctx.device) for n, a in made.items()}, ctx)
    return attach(rows, pa.table({"id": pa.array([row["id"] for row in found], pa.large_string()),
                                  asking.column: pa.array(said, pa.large_string())}))
