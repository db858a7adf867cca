"""What methods share that let somebody write: a local model, or an endpoint that speaks OpenAI's protocol.

Requests go out in blocks. Each answer is kept at once in the stage's scratch under a hash of all that it depends on (writer,
prompt, sampling, seed): whatever interrupts the stage, the same command goes on where it stopped and asks for nothing twice.
The seed of a request is derived from its name: neither its block nor what was written before moves it.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import pyarrow as pa
import pyarrow.parquet as pq

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.corpus.sources import Row

BLOCK_ROWS = 1024
BEFORE = re.compile(r"\A((sure|certainly|of course|absolutely)\b[^\n]{0,160}[:!.]|here('s| is| are)\b[^\n]{0,160}:)\s*\n", re.I)
BEHIND = re.compile(r"\n+(i hope (this|that)|(please )?let me know|feel free to|is there anything else)\b[^\n]*\s*\Z", re.I)


class Settings(Protocol):
    """What a method that lets write has as settings; ``check_writing`` says what is possible."""

    endpoint: str
    model_name: str
    key_variable: str
    at_once: int
    requests_per_minute: int
    temperature: float
    top_k: int
    max_tokens: int

    @property
    def name(self) -> str: ...


class Request(NamedTuple):
    """One thing to be written: its name, which its seed depends on, and what the writer is told."""

    name: str
    prompt: str
    temperature: float | None = None
    """None: the method's setting. A backend is given no None."""


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn."""

    temperature: float
    top_k: int
    max_tokens: int


class Stopped(Exception):
    """The backend cannot go on; the text says why."""


class Backend(Protocol):
    """Who writes."""

    block: int
    """Requests that it wants at a time."""
    identity: str
    """What its answers depend on beside the request and the sampling."""

    def answer(self, requests: Sequence[Request], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """The number and the answer of each request, in any order, as they are ready.

        Raises:
            Stopped: after everything was yielded that was still to be had.
        """
        ...

    def close(self) -> None: ...


def check_writing(settings: Settings) -> None:
    """For ``__post_init__``: which settings can be together.

    Raises:
        ValueError: one that is not possible.
    """
    if settings.endpoint and not re.match(r"https?://[^/@\s]+(/|$)", settings.endpoint):
        raise ValueError(f"endpoint is an address such as http://127.0.0.1:8000/v1, without user or password in it, not "
                         f"{settings.endpoint.rpartition('@')[2]!r}")
    if bool(settings.endpoint) != bool(settings.model_name):
        raise ValueError("endpoint and model_name go together: where to ask, and for which of its models")
    for name, least in (("at_once", 1), ("max_tokens", 1), ("requests_per_minute", 0), ("top_k", 0), ("temperature", 0)):
        if getattr(settings, name) < least:
            raise ValueError(f"{name} must be {least} or more, not {getattr(settings, name)}")


class Writer:
    """Writes what requests ask for, each once. Used in a ``with`` statement.

    Args:
        settings: the method.
        ctx: its context; ``from.model`` writes where the settings name no endpoint.

    Raises:
        UserError: there is nobody to write.
    """

    def __init__(self, settings: Settings, ctx: Context) -> None:
        assert ctx.folder is not None
        self.method, self.ctx = settings.name, ctx
        self.sampling = Sampling(settings.temperature, settings.top_k, settings.max_tokens)
        self.backend = _backend(settings, self.sampling, ctx)
        self.kept = Kept(ctx.folder / "answers.sqlite")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.backend.close()
        self.kept.file.close()

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str]]:
        """Each request with its answer, in order; blank space around an answer is taken off.

        Raises:
            UserError: the writer failed; what it wrote is kept.
        """
        usual = self.sampling.temperature
        told = (r if r.temperature is not None else r._replace(temperature=usual) for r in requests)
        for block in blocks(told, self.backend.block):
            seeds = [self.ctx.rng(f"{self.method}/{r.name}", at=0).initial_seed() % 2**31 for r in block]
            keys = [self._key(r, seed) for r, seed in zip(block, seeds, strict=True)]
            known = self.kept.read(keys)
            missing = [i for i, key in enumerate(keys) if key not in known]
            try:
                for i, text in self.backend.answer([block[i] for i in missing], [seeds[i] for i in missing]):
                    key = keys[missing[i]]
                    known[key] = text.strip()
                    self.kept.write(key, known[key])
            except Stopped as error:
                raise UserError(f"{self.method}: {error} {self.kept.count():,} answers are written and kept: the same command "
                                "goes on from there.") from None
            yield from ((r, known[key]) for r, key in zip(block, keys, strict=True))

    def _key(self, request: Request, seed: int) -> str:
        what = (self.backend.identity, request.prompt, seed, request.temperature, astuple(self.sampling)[1:])
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _backend(settings: Settings, sampling: Sampling, ctx: Context) -> Backend:
    if settings.endpoint:
        from trainwright.lm.writing.endpoint import Endpoint
        return Endpoint(settings, sampling)
    if "model" not in ctx.inputs:
        raise UserError(f"{settings.name} has nobody to write: give the stage a model (from = {{ model = \"NAME\" }}), or the "
                        "method an endpoint and a model_name.")
    from trainwright.lm.writing.local import LocalWriter
    return LocalWriter(ctx.path("model"), settings, sampling, ctx)


class Kept:
    """Answers by key, in one file that survives a kill at any moment."""

    def __init__(self, file: Path) -> None:
        self.file = sqlite3.connect(file, isolation_level=None)
        self.file.execute("create table if not exists answers (key text primary key, answer text not null) without rowid")

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        found = (self.file.execute("select key, answer from answers where key = ?", (key,)).fetchone() for key in keys)
        return dict(pair for pair in found if pair)

    def write(self, key: str, answer: str) -> None:
        safe = answer.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        self.file.execute("insert or replace into answers values (?, ?)", (key, safe))

    def count(self) -> int:
        return int(self.file.execute("select count(*) from answers").fetchone()[0])


def blocks(things: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """``things`` in lists of ``size``, the last one shorter."""
    rest = iter(things)
    while block := list(islice(rest, size)):
        yield block


def kept_table(rows: Iterable[Row], ctx: Context) -> DataFrame:
    """A table of rows that are made now, one block at a time; in the stage's scratch until the stage is done."""
    from trainwright.corpus.documents import ARROW, parquet
    assert ctx.folder is not None
    file, unfinished = ctx.folder / "made.parquet", ctx.folder / "made.unfinished"
    if not file.is_file():
        with pq.ParquetWriter(unfinished, ARROW, compression="zstd") as out:
            for block in blocks(rows, BLOCK_ROWS):
                out.write_table(pa.Table.from_pylist(block, ARROW))
        os.replace(unfinished, file)
    return parquet([file])


def sources(documents: DataFrame, on: Sequence[str], method: str) -> list[dict[str, str]]:
    """``id``, ``text`` and ``domain`` of the plain documents of some domains (all where none is named), sorted by id.

    Raises:
        UserError: a domain without documents, or no document at all.
    """
    from trainwright.corpus.selecting import columns
    found = columns(documents.where(documents["messages"].is_null()), "id", "text", "domain").to_pylist()
    there = {r["domain"] for r in found}
    for domain in on:
        if domain not in there:
            raise UserError(f"{method}: there is no document of plain text in the domain {domain!r}{suggest(domain, there)}.")
    chosen = [r | {"text": r["text"] or ""} for r in found if not on or r["domain"] in on]
    if not any(r["text"].strip() for r in chosen):
        raise UserError(f"{method} has nothing to read: no document with plain text came in.")
    return sorted(chosen, key=lambda r: r["id"])


def passages(text: str, most: int) -> Iterator[str]:
    """``text`` cut into passages of ``most`` characters at most: at a blank line, the end of a sentence or a space where there is
    one in the second half, else anywhere. Blank ones are left out."""
    at = 0
    while at < len(text):
        window, end = text[at:at + most], at + most
        if at + most < len(text):
            for break_at in (r"\n\s*\n", r"(?<=[.!?])\s+", r"\s+"):
                if ends := [m.end() for m in re.finditer(break_at, window) if 2 * m.start() >= most]:
                    end = at + ends[-1]
                    break
        if passage := text[at:end].strip():
            yield passage
        at = end


def filled(template: str, **parts: str) -> str:
    """``template`` with ``{name}`` replaced by each part; braces in a part stay what they are."""
    return re.sub(r"\{(\w+)\}", lambda m: parts.get(m[1], m[0]), template)


def cleaned(answer: str) -> str:
    """``answer`` without what a chat model says before and behind it, each on a line of its own, and without quotes around it."""
    text = BEHIND.sub("", BEFORE.sub("", answer.strip())).strip()
    if len(text) > 1 and (text[0], text[-1]) in {('"', '"'), ("\u201c", "\u201d")} and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text
