"""Segments of the texts in a row, and how bad each is: lines by patterns, sentences by a classifier,
documents by a score."""
from __future__ import annotations

import re
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import UNTRAINED, Batch
from trainwright.corpus.tokens import open_corpus
from trainwright.families import evaluating
from trainwright.lm.classes import class_logits, head_of
from trainwright.lm.rows import SHARD

LONGEST = 512
"""Tokens of a sentence that a classifier reads."""
ENDS = re.compile(r"""[.!?]["')\]]*$""")
"""How a sentence ends."""


class Text(NamedTuple):
    """A document's part of a row, and the token behind it (0 where that is not known)."""

    at: int
    number: int
    tokens: list[int]
    learned: list[bool]
    """Of each token whether it is a target; of the first whether it would be one if something stood before
    it."""
    address: list[int]


def texts(batch: Batch, row: int, folder: Path) -> list[Text]:
    """The texts of a row, without its padding."""
    ids, targets, documents, address = (batch[n][row].tolist()
                                        for n in ("input_ids", "targets", "document", "address"))
    found = []
    for number, group in groupby(range(len(ids)), key=documents.__getitem__):
        places = list(group)
        at, end = places[0], places[-1] + 1
        if number >= 0:
            first = address[at] in starts_of(folder)
            begins = first and bool(open_corpus(folder).read_mask(*divmod(address[at], SHARD), 1)[0])
            learned = [begins, *(t != UNTRAINED for t in targets[at:end])]
            found.append(Text(at, number, [*ids[at:end], max(0, targets[end - 1])], learned,
                              [*address[at:end], -1]))
    return found


@lru_cache(maxsize=4)
def starts_of(folder: Path) -> frozenset[int]:
    """Addresses of the documents' first tokens."""
    return frozenset(_starts(folder)[0].tolist())


def _starts(folder: Path) -> tuple[NDArray[np.int64], list[str]]:
    """Addresses of the documents' first tokens, and their ids."""
    index = pq.read_table(folder / "tokens" / "index.parquet", columns=["id", "shard", "offset"])
    starts = index["shard"].to_numpy().astype(np.int64) * SHARD + index["offset"].to_numpy().astype(np.int64)
    return starts, index["id"].to_pylist()


class Scored(NamedTuple):
    """A score of all documents of a corpus."""

    starts: NDArray[np.int64]
    """Addresses of the documents' first tokens, in order."""
    score: NDArray[np.float64]
    """NaN where a document has none."""

    def at(self, address: int) -> float:
        return float(self.score[int(np.searchsorted(self.starts, address, side="right")) - 1])


@lru_cache(maxsize=4)
def scores_of(folder: Path, column: str) -> Scored:
    """A column of the documents of a corpus, read once in a process.

    Raises:
        UserError: no such column, one that holds no numbers or no score at all, a NaN.
    """
    files = sorted((folder / "documents").glob("*.parquet"))
    schema = pq.read_schema(files[0])
    if column not in schema.names:
        raise UserError(f"phf reads the column {column!r} of the documents, which the corpus has not"
                        f"{suggest(column, schema.names)}: put what writes it into the corpus' stage.")
    kind = schema.field(column).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind)):
        raise UserError(f"phf reads the column {column!r} as a score; it holds {kind}, not numbers.")
    table = pa.concat_tables([pq.read_table(f, columns=["id", column]) for f in files])
    told = dict(zip(table["id"].to_pylist(), table[column].to_pylist(), strict=True))
    if any(v is not None and np.isnan(v) for v in told.values()):
        raise UserError(f"phf: documents have NaN as {column!r}: the method that wrote it went wrong.")
    if all(v is None for v in told.values()):
        raise UserError(f"phf: no document has a score in {column!r}.")
    starts, names = _starts(folder)
    score = np.array([np.nan if (v := told.get(name)) is None else float(v) for name in names])
    order = np.argsort(starts, kind="stable")
    return Scored(starts[order], score[order])


@lru_cache(maxsize=4)
def line_ends(folder: Path) -> frozenset[int]:
    """The tokens with which a line may end."""
    tokenizer = open_corpus(folder).tokenizer
    return frozenset(i for i in range(len(tokenizer)) if "\n" in tokenizer.decode([i]))


def lines(tokens: list[int], ends: frozenset[int]) -> list[int]:
    """The numbers of tokens of the lines, each with what ends it."""
    stops = [i + 1 for i, token in enumerate(tokens) if token in ends]
    edges = [0, *stops, *([len(tokens)] if not stops or stops[-1] < len(tokens) else [])]
    return [b - a for a, b in pairwise(edges)]


def badness(text: str, patterns: list[re.Pattern[str]]) -> float:
    """Characters in what the patterns find, as a share of all; what two of them find counts twice."""
    return sum(len(m[0]) for p in patterns for m in p.finditer(text)) / max(1, len(text))


def by_patterns(text: Text, folder: Path, patterns: tuple[str, ...]) -> list[tuple[int, float]]:
    """The lines of a text: numbers of tokens, and badness."""
    tokenizer: Any = open_corpus(folder).tokenizer
    wanted, out, at = [re.compile(p) for p in patterns], list[tuple[int, float]](), 0
    for size in lines(text.tokens, line_ends(folder)):
        line = str(tokenizer.decode(text.tokens[at:at + size], skip_special_tokens=True))
        out.append((size, badness(line, wanted)))
        at += size
    return out


def by_column(text: Text, folder: Path, column: str) -> list[tuple[int, float]]:
    """The whole text, with the score of its document (NaN where it has none)."""
    return [(len(text.tokens), scores_of(folder, column).at(text.address[0]))]


class Classifier(NamedTuple):
    """A model that sorts sentences, and which of its classes is the bad one."""

    model: nn.Module
    tokenizer: Any
    bad: int

    @classmethod
    def of(cls, ctx: Context, role: str, bad: str, method: str) -> Classifier:
        """That of a role of the stage.

        Raises:
            UserError: none, one without classes or without this one, or without a tokenizer.
        """
        if role not in ctx.frozen:
            raise UserError(f"{method}: bad_class needs a classifier: from = {{ {role} = \"NAME\" }}, a "
                            "model that was trained with the method classifier.")
        model = ctx.frozen[role]
        classes = head_of(model).settings.classes
        if bad not in classes:
            raise UserError(f"{method}: bad_class = {bad!r} is none of the classes {', '.join(classes)}"
                            f"{suggest(bad, classes)}.")
        return cls(model, _tokenizer(ctx.path(role), method), classes.index(bad))

    def badness(self, sentences: list[str]) -> list[float]:
        """The probability of the bad class of each."""
        rows = [self.tokenizer(one, truncation=True, max_length=LONGEST)["input_ids"] for one in sentences]
        width = max(map(len, rows))
        device = next(self.model.parameters()).device
        ids, there = torch.zeros(2, len(rows), max(1, width), dtype=torch.int64, device=device)
        for i, row in enumerate(rows):
            ids[i, :len(row)], there[i, :len(row)] = torch.tensor(row, device=device), 1
        with torch.no_grad(), evaluating(self.model):
            logits = class_logits(self.model, {"input_ids": ids, "attention_mask": there})
        return [float(p) for p in logits.softmax(1)[:, self.bad]]


def by_classifier(text: Text, folder: Path, judge: Classifier) -> list[tuple[int, float]]:
    """The sentences of a text: numbers of tokens, and badness; what is only white space is good."""
    tokenizer: Any = open_corpus(folder).tokenizer
    sizes = sentences([str(tokenizer.decode([t], skip_special_tokens=True)) for t in text.tokens])
    ends = np.cumsum(sizes).tolist()
    said = [str(tokenizer.decode(text.tokens[end - size:end], skip_special_tokens=True))
            for size, end in zip(sizes, ends, strict=True)]
    full = [i for i, one in enumerate(said) if one.strip()]
    found = dict(zip(full, judge.badness([said[i] for i in full]) if full else (), strict=True))
    return [(size, found.get(i, 0.0)) for i, size in enumerate(sizes)]


def sentences(pieces: list[str]) -> list[int]:
    """The numbers of tokens of the sentences, given what each token says: one ends behind a full stop, a
    question or exclamation mark that white space follows, and at the end of a line."""
    stops, said = list[int](), ""
    for i, (piece, after) in enumerate(pairwise([*pieces, ""])):
        said += piece
        if ("\n" in piece and "\n" not in after) or (ENDS.search(said) and after[:1].isspace()):
            stops.append(i + 1)
            said = ""
    edges = [0, *stops, *([len(pieces)] if not stops or stops[-1] < len(pieces) else [])]
    return [b - a for a, b in pairwise(edges)]


@lru_cache(maxsize=4)
def _tokenizer(folder: Path, method: str) -> Any:
    from trainwright import families
    found = families.load_tokenizer(folder, method)
    if found is None:
        raise UserError(f"{method}: the classifier in {folder} has no tokenizer.")
    return found
