"""Letting a model write text: a local one, or an endpoint that speaks OpenAI's protocol.

A method has the settings ``writer: Writer = Writer()`` and writes with them::

    with self.writer.start(self.name, ctx) as writing:
        for request, answer in writing.write(requests):
            ...

Requests go out in blocks. Each answer is stored at once in the stage's scratch folder under a hash of
everything it depends on (writer, prompt, sampling, seed). Whatever interrupts the stage, the same command
continues where it stopped and asks for nothing twice. The seed of a request is derived from its name, so it
depends neither on the block the request is in nor on what was written before. """
from __future__ import annotations

import hashlib
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self
from urllib.parse import urlsplit

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.shown import brief

KEYS = r"TRAINWRIGHT_\w+"
"""Names of variables that may hold a key."""


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Who writes, and how: settings that every method that has text written shares."""

    endpoint: str = ""
    """Address of a server that speaks OpenAI's protocol, such as http://127.0.0.1:8000/v1; without it
    ``from.model`` writes."""
    model: str = ""
    """Name of the model at the endpoint."""
    key_variable: str = ""
    """Environment variable that holds the endpoint's key; its name begins with ``TRAINWRIGHT_``,
    so that no recipe can send away another secret. It is sent over https, or to this machine.
    Without it none is sent."""
    at_once: int = 8
    """Concurrent requests; for a local model, rows of a batch."""
    requests_per_minute: int = 0
    """Limit on the requests to an endpoint; 0: none."""
    temperature: float = 0.7
    """Sampling temperature; 0 takes the likeliest token each time."""
    top_k: int = 0
    """How many of the likeliest tokens to draw from; 0: all, and endpoints are not sent the word."""
    max_tokens: int = 512
    """Longest answer, in tokens."""

    def __post_init__(self) -> None:
        if self.endpoint and not re.fullmatch(r"https?://[^/@\s?#\\]+(/[^@\s?#\\]*)?", self.endpoint):
            shown = re.sub(r"[?#].*", "", self.endpoint.rpartition("@")[2])
            raise ValueError(
                "endpoint is an address such as http://127.0.0.1:8000/v1, without user, password "
                f"or query in it, not {brief(shown)}"
            )
        if self.key_variable and not re.fullmatch(KEYS, self.key_variable):
            raise ValueError(
                f"key_variable names a variable that begins with TRAINWRIGHT_, not "
                f"{brief(self.key_variable)}: no recipe may send away another secret of yours; put "
                "the key into such a variable, as TRAINWRIGHT_KEY"
            )
        if self.key_variable and self.endpoint and not _private(self.endpoint):
            raise ValueError(
                "endpoint would be sent a key that everybody on the way can read: take https, or an "
                "address of this machine"
            )
        if bool(self.endpoint) != bool(self.model):
            raise ValueError("endpoint and model go together: where to ask, and for which of its models")
        least = {"at_once": 1, "max_tokens": 1, "requests_per_minute": 0, "top_k": 0, "temperature": 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} must be {smallest} or more, not {getattr(self, name)}")

    def start(self, method: str, ctx: Context) -> Writing:
        """Start writing for a method; to be used in a ``with`` statement.

        Raises:
            UserError: neither an endpoint nor ``from.model`` is there to write.
        """
        return Writing(self, method, ctx)


def _private(endpoint: str) -> bool:
    """Whether nobody on the way to an address can read what is sent there."""
    return endpoint.startswith("https://") or loopback(urlsplit(endpoint).hostname or "")


def loopback(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Request(NamedTuple):
    """One text to be written: a name, from which its seed is derived, and the prompt."""

    name: str
    prompt: str
    temperature: float | None = None
    """None: the writer's setting. A backend never sees None."""


class Stopped(Exception):
    """The backend cannot go on; the text says why."""


class Backend(Protocol):
    """What answers the requests."""

    block: int
    """Requests that it wants at a time."""
    identity: str
    """What its answers depend on beside the request and the sampling."""

    def answer(self, requests: Sequence[Request], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """The number and the answer of each request, in any order, as they are ready.

        Raises:
            Stopped: after every answer that was still to be had was yielded.
        """
        ...

    def close(self) -> None: ...


class Writing:
    """Answers requests, each once."""

    def __init__(self, writer: Writer, method: str, ctx: Context) -> None:
        assert ctx.folder is not None
        self.writer, self.method, self.ctx = writer, method, ctx
        self.backend = _backend(writer, method, ctx)
        self.kept = Kept(ctx.folder / "answers.sqlite")
        ctx.kept.append(ctx.folder / "answers.sqlite")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.backend.close()
        self.kept.file.close()

    def write(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str]]:
        """Each request with its answer, in order, stripped of surrounding white space.

        Raises:
            UserError: the writer failed; its earlier answers are kept.
        """
        usual = self.writer.temperature
        asked = (r if r.temperature is not None else r._replace(temperature=usual) for r in requests)
        for block in blocks(asked, self.backend.block):
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
                raise UserError(f"{self.method}: {error} {self.kept.count():,} answers are written and kept: "
                                "the same command continues from there.") from None
            yield from ((r, known[key]) for r, key in zip(block, keys, strict=True))

    def _key(self, request: Request, seed: int) -> str:
        sampling = (self.writer.top_k, self.writer.max_tokens)
        what = (self.backend.identity, request.prompt, seed, request.temperature, sampling)
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()


def _backend(writer: Writer, method: str, ctx: Context) -> Backend:
    if writer.endpoint:
        from trainwright.lm.writing.endpoint import Endpoint
        if ctx.decode:
            raise UserError(
                f"{method}: {ctx.decode[0].name} shapes what a local model writes (from.model), and the "
                "writer is an endpoint, which samples by itself."
            )
        return Endpoint(writer, method)
    if "model" not in ctx.inputs:
        raise UserError(f"{method} has nobody to write: give the stage a model (from = "
                        f"{{ model = \"NAME\" }}), or the writer an endpoint and a model (writer = "
                        "{ endpoint = \"…\", model = \"…\" }).")
    from trainwright.lm.writing.local import LocalWriter
    return LocalWriter(ctx.path("model"), writer, method, ctx)


class Kept:
    """Answers by key, in one file that survives a kill at any moment."""

    def __init__(self, file: Path) -> None:
        self.file = sqlite3.connect(file, isolation_level=None)
        self.file.execute("create table if not exists answers (key text primary key, answer text not null) "
                          "without rowid")

    def read(self, keys: Sequence[str]) -> dict[str, str]:
        query = "select key, answer from answers where key = ?"
        found = (self.file.execute(query, (key,)).fetchone() for key in keys)
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
