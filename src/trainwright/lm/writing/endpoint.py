"""A writer behind an address: any server that speaks OpenAI's chat completions.

vLLM, llama.cpp, SGLang, Ollama and hosted services do. Whatever a server does, a request ends: an answer is
limited in time as a whole, in bytes when it is unpacked, and in depth. Redirects are not followed.
"""
from __future__ import annotations

import asyncio
import json
import os
import re
import threading
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, NamedTuple

from trainwright.core.errors import UserError
from trainwright.core.shown import brief
from trainwright.lm.writing.writer import Request, Stopped, Writer, loopback

TRIES = 5
WAIT = 1.0
"""Seconds before the second try; twice as long before each other one, or as long as the server asks."""
LONGEST_WAIT = 120.0
TIMEOUT = 600.0
"""Seconds that one answer may take, from the first byte sent to the last one read."""
LARGEST = 16 << 20
"""Bytes of one answer, unpacked."""
PACKED = {"": 0, "identity": 0, "gzip": 31, "x-gzip": 31, "deflate": 47}
"""Encodings of an answer that are read, and what zlib calls them; 0: not packed."""
AGAIN = {408, 409, 425, 429}
"""Answers that are worth another try; so is every failure of the server itself (500 and above)."""


class Reply(NamedTuple):
    """What a server said."""

    status: int
    body: bytes
    asked: float
    """Seconds that it asks to wait."""


class Unusable(Exception):
    """The server sends what is not read to its end."""


class CalledOff(Exception):
    """Another request failed, so this one is not sent."""


class Endpoint:
    """Asks with several threads, at most so many times a minute."""

    def __init__(self, writer: Writer, method: str) -> None:
        try:
            import httpx2
        except ImportError:
            raise UserError(f"{method}: an endpoint needs the library httpx2: pip install httpx2.") from None
        self.writer, self.url, self.variable = writer, writer.endpoint.rstrip("/"), writer.key_variable
        self.identity, self.block = f"endpoint {writer.model}", 16 * writer.at_once
        self.key = os.environ.get(self.variable, "").strip() if self.variable else ""
        if self.variable and not self.key:
            raise UserError(f"{method}: the key of the endpoint is to be in the environment variable "
                            f"{self.variable}, which is not set.")
        if not (self.key.isascii() and self.key.isprintable()):
            raise UserError(f"{method}: the key in the environment variable {self.variable} has characters "
                            "that no header can hold.")
        self.pace = Pace(writer.requests_per_minute)
        self.over = threading.Event()
        try:
            self.here = loopback(httpx2.URL(self.url).host)
        except (httpx2.InvalidURL, ValueError) as error:
            raise UserError(f"{method}: the endpoint {self.url!r} is no address: {error}.") from None
        self.secure = httpx2.create_ssl_context(trust_env=not self.here)

    def answer(self, requests: Sequence[Request], seeds: Sequence[int]) -> Iterator[tuple[int, str]]:
        """Answers as they come. The first failure calls off what has not begun; what is under way is still
        yielded."""
        failure: Stopped | None = None
        pool = ThreadPoolExecutor(self.writer.at_once)
        try:
            asked = enumerate(zip(requests, seeds, strict=True))
            futures = {pool.submit(self._first_to_fail, request, seed): i for i, (request, seed) in asked}
            for done in as_completed(futures):
                if done.cancelled() or isinstance(error := done.exception(), CalledOff):
                    continue
                if isinstance(error, Stopped):
                    failure = failure or error
                else:
                    yield futures[done], done.result()
        finally:
            self.over.set()
            pool.shutdown(wait=True, cancel_futures=True)
            self.over.clear()
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Nothing is open between two requests."""

    def _first_to_fail(self, request: Request, seed: int) -> str:
        """One answer; a failure calls off the others."""
        try:
            return self._one(request, seed)
        except BaseException:
            self.over.set()
            raise

    def _one(self, request: Request, seed: int) -> str:
        """One answer, tried several times."""
        import httpx2
        body = {"model": self.writer.model, "messages": [{"role": "user", "content": request.prompt}],
                "seed": seed,
                "temperature": request.temperature, "max_tokens": self.writer.max_tokens}
        if self.writer.top_k:
            body["top_k"] = self.writer.top_k
        why = ""
        for turn in range(TRIES):
            if self.over.is_set() or not self.pace.wait(self.over):
                raise CalledOff
            wait = WAIT * 2**turn
            try:
                reply = self._ask(body)
            except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, zlib.error, Unusable) as error:
                why = self._hidden(f"{type(error).__name__}: {error}".rstrip(": "))
                why = (
                    f"no whole answer within {TIMEOUT:g} seconds" if isinstance(error, TimeoutError) else why
                )
            else:
                if reply.status == 200 and (text := content(reply.body)) is not None:
                    return text
                why = self._why(reply, request)
                wait = max(wait, reply.asked)
            if turn + 1 < TRIES:
                self.over.wait(min(wait, LONGEST_WAIT))
        raise Stopped(f"the endpoint {self.url} gave no answer in {TRIES} tries ({why}).")

    def _ask(self, body: dict[str, Any]) -> Reply:
        """What the server says to one request, in a loop of its own: only so has the whole an end."""
        async def within() -> Reply:
            async with asyncio.timeout(TIMEOUT):
                return await self._post(body)
        return asyncio.run(within())

    async def _post(self, body: dict[str, Any]) -> Reply:
        import httpx2

        headers = {"Accept-Encoding": "gzip, deflate"} | (
            {"Authorization": f"Bearer {self.key}"} if self.key else {}
        )
        patience = httpx2.Timeout(TIMEOUT, connect=10.0)
        async with (
            httpx2.AsyncClient(timeout=patience, trust_env=not self.here, verify=self.secure) as client,
            client.stream("POST", f"{self.url}/chat/completions", json=body, headers=headers) as reply,
        ):
            packed = reply.headers.get("content-encoding", "").strip().lower()
            if packed not in PACKED:
                raise Unusable(f"the answer is packed as {brief(packed)}, which was not asked for")
            unpack = zlib.decompressobj(PACKED[packed]) if PACKED[packed] else None
            raw = bytearray()
            async for part in reply.aiter_raw():
                raw += unpack.decompress(part, LARGEST + 1 - len(raw)) if unpack else part
                if len(raw) > LARGEST:
                    raise Unusable(f"the answer has more than {LARGEST:,} bytes")
            return Reply(reply.status_code, bytes(raw), asked(reply.headers.get("retry-after", "")))

    def _hidden(self, text: str) -> str:
        return text.replace(self.key, "...") if self.key else text

    def _why(self, reply: Reply, request: Request) -> str:
        """What was wrong with a reply that is worth another try; what is not ends it."""
        code = reply.status
        if code in AGAIN or code >= 500:
            return f"status {code}"
        if code == 200:
            return "what it answers is no chat completion"
        if code in (401, 403):
            how = f"the one in {self.variable}" if self.variable else "and key_variable names none"
            raise Stopped(f"the endpoint {self.url} wants another key ({how}; status {code}).")
        said = self._hidden(" ".join(reply.body.decode("utf-8", "replace").split()))[:200]
        raise Stopped(f"the endpoint {self.url} refuses the request {request.name!r} for the model "
                      f"{self.writer.model!r} (status {code}: {said}).")


class Pace:
    """At most so many starts a minute, evenly; 0: no limit."""

    def __init__(self, per_minute: int) -> None:
        self.gap = 60.0 / per_minute if per_minute else 0.0
        self.lock, self.free = threading.Lock(), 0.0

    def wait(self, over: threading.Event) -> bool:
        """Sleep until it is one's turn; False where it was called off meanwhile."""
        with self.lock:
            now = time.monotonic()
            at = max(now, self.free)
            self.free = at + self.gap
        return not (over.wait(at - now) if at > now else over.is_set())


def content(body: bytes) -> str | None:
    """The text of a chat completion, or None where it is none. A refusal has no text;
    parts of text are joined."""
    try:
        said = json.loads(body)["choices"][0]["message"].get("content")
        if isinstance(said, list):
            said = "".join(part["text"] for part in said if part["type"] == "text")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None
    return (said or "") if isinstance(said, str | None) else None


def asked(retry_after: str) -> float:
    """Seconds that the server asks to wait; 0 where it asks for nothing, or for nonsense."""
    return float(retry_after) if re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", retry_after.strip()) else 0.0
