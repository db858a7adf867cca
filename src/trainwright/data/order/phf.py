"""Pretraining with human preferences: segments of a text are marked good or bad, and the model learns which.

"Pretraining Language Models with Human Preferences" (arXiv 2302.08582). A segment has a badness s: a line
the share of its characters that ``patterns`` match (telephone numbers, insults), or a document its
``column``, a score that a method wrote. It is bad if s > ``threshold``. ``mode`` says what follows:

    conditional    a control token before each segment, <good> or <bad>, except in the share ``silent`` of
                   them; all is learned, the control tokens too: -log p
    unlikelihood   -log p of the tokens of good segments, -alpha log(1 - p) of those of bad ones
                   (1 - p at least 1e-20)
    filtering      documents (parts of a row) whose mean badness is above the threshold are not learned

The score of the predicted token is the one that counts. Conditional training was the best of the paper's
five objectives; its two others (reward and advantage weighted) are left out. To sample, start with <good>
and forbid both control tokens; without <good> the model behaves as after ordinary training.

Put it after ``pack``; it is the objective too, in place of ``next_token``. Control tokens are the model's
last two ids, <good> the last and <bad> the one before, which must be beyond its tokenizer
(``model = { vocab_size = … }``), unless ``last`` names ids that no text has. Their embeddings start like
all others (in the paper: as the mean). They push the end of a row out, so rows should be long compared with
lines. A line that a row cuts counts as far as it is in the row. ``filtering`` spends positions on what it
does not learn; ``filter`` in the corpus stage does not. A document without a score is good and gets no
control token.

Not with a score that is wrong about what is bad: everything rests on it.

Errors: neither or both of patterns and column, no such column, no room for the ids, rows not from a corpus.
State: the ids. """
from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import lru_cache
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import UNTRAINED, Batch, Data, Objective, State
from trainwright.corpus.tokens import open_corpus
from trainwright.lm.losses import logged_losses, trained_tokens
from trainwright.lm.rows import SHARD

EMPTY = {"input_ids": 0, "targets": UNTRAINED, "document": -1, "address": -1, "bad": 0, "position_ids": 0}


class Phf(Data, Objective):
    """Marks good and bad segments of each row, and learns from them."""

    mode: Literal["conditional", "unlikelihood", "filtering"] = "conditional"
    """What becomes of bad segments."""
    patterns: tuple[str, ...] = ()
    """Regular expressions of what is bad, looked for in each line; or ``column``."""
    column: str = ""
    """Column of the documents with their badness."""
    threshold: float = 0.0
    """Badness above which a segment is bad."""
    silent: float = 0.01
    """Share of the segments that get no control token."""
    alpha: float = 1.0
    """Factor of the unlikelihood."""
    last: int | None = None
    """Id of <good>; <bad> is the one before it; default: the model's last."""
    weight: float = 1.0
    """Factor of this loss in the sum."""
    example: ClassVar[dict[str, Any]] = {"patterns": ["farmer", "return"], "last": 222}

    def __post_init__(self) -> None:
        if bool(self.patterns) == bool(self.column):
            raise ValueError("say either patterns (regular expressions of what is bad) or column (a score of "
                             "the documents)")
        for pattern in self.patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"patterns: {pattern!r} is no regular expression: {error}") from None
        if not 0 <= self.silent <= 1 or not self.alpha >= 0:
            raise ValueError(f"silent must be from 0 to 1 and alpha 0 or more, not {self.silent} and "
                             f"{self.alpha}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        if self.column:
            scores_of(ctx.path("data"), self.column)
        size: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
        known = len(ctx.tokenizer) if ctx.tokenizer is not None else 0
        good = size - 1 if self.last is None else self.last
        if self.mode == "conditional" and (not 1 <= good < size or (self.last is None and known > good - 1)):
            raise UserError(f"phf: the tokenizer has {known} tokens and the model {size} ids: there is no "
                            f"room for <good> and <bad>: make the model with vocab_size = {known + 2}, or "
                            "set last to an id that no text has.")
        return {"shared": {"good": good}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch, good = pull(), state["shared"]["good"]
        if "address" not in batch:
            raise UserError("phf: the rows do not say where in the corpus they are from: put it behind pack.")
        controls = (batch["input_ids"] == good) | (batch["input_ids"] == good - 1)
        if self.mode == "conditional" and controls.any():
            raise UserError(f"phf: the text has tokens with the ids {good - 1} or {good}, which are control "
                            "tokens: set last.")
        rows, length = batch["input_ids"].shape
        made = {n: torch.full((rows, length), empty) for n, empty in EMPTY.items()}
        first, bad, many = ctx.rows(ctx.batch_rows).start, 0, 0
        for r in range(rows):
            at, rng = 0, ctx.rng(f"phf/{first + r}")
            for text in texts(batch, r, ctx.path("data")):
                at = text.at if self.mode != "conditional" else at
                segments = judged(text, ctx.path("data"), self.column, self.patterns)
                bad, many = bad + sum(s > self.threshold for _, s in segments), many + len(segments)
                tokens = self.marked(text, segments, good, rng, ctx)
                put = {n: torch.tensor([one[n] for one in tokens[:length - at + 1]]) for n in tokens[0]}
                end = min(length, at + len(tokens) - 1)
                for n in ("input_ids", "address"):
                    made[n][r, at:end] = put[n][:end - at]
                targets = torch.where(put["learned"], put["input_ids"], UNTRAINED)
                made["targets"][r, at:end] = targets[1:end - at + 1]
                made["bad"][r, at:end] = put["bad"][1:end - at + 1]
                made["document"][r, at:end] = text.number
                made["position_ids"][r, at:] = torch.arange(length - at)
                at = end
        ctx.note("bad_segments", bad / max(1, many), weight=many)
        return batch | made

    def marked(self, text: Text, segments: list[tuple[int, float]], good: int, rng: torch.Generator,
               ctx: Context) -> list[dict[str, Any]]:
        """The tokens as the model reads them, each with what is known of it."""
        out: list[dict[str, Any]] = []
        at, lead = 0, ctx.tokenizer is not None and text.tokens[0] == ctx.tokenizer.bos_token_id
        known = [s for _, s in segments if not math.isnan(s)]
        dropped = self.mode == "filtering" and bool(known) and sum(known) / len(known) > self.threshold
        for size, score in segments:
            mark = {"input_ids": good - (score > self.threshold), "address": -1,
                    "learned": bool(out) or lead, "bad": 0}
            loud = float(torch.rand((), generator=rng)) >= self.silent and not math.isnan(score)
            for k in range(at, at + size):
                if self.mode == "conditional" and loud and k == at + (lead and not at):
                    out.append(mark)
                out.append({"input_ids": text.tokens[k], "address": text.address[k],
                            "learned": text.learned[k] and not dropped,
                            "bad": int(score > self.threshold)})
            at += size
        return out

    def count(self, batch: Batch) -> float:
        return trained_tokens(batch)

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        losses = logged_losses(model, batch, ctx)
        if self.mode != "unlikelihood":
            return losses
        against = -self.alpha * torch.log((-torch.expm1(-losses)).clamp(min=1e-20))
        return torch.where((batch["bad"] > 0) & (batch["targets"] != UNTRAINED), against, losses)


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


def judged(text: Text, folder: Path, column: str, patterns: tuple[str, ...]) -> list[tuple[int, float]]:
    """The segments of a text: numbers of tokens, and badness (NaN where it is not known)."""
    if column:
        return [(len(text.tokens), scores_of(folder, column).at(text.address[0]))]
    tokenizer: Any = open_corpus(folder).tokenizer
    wanted, out, at = [re.compile(p) for p in patterns], list[tuple[int, float]](), 0
    for size in lines(text.tokens, line_ends(folder)):
        line = str(tokenizer.decode(text.tokens[at:at + size], skip_special_tokens=True))
        out.append((size, badness(line, wanted)))
        at += size
    return out
