"""An endpoint is asked at a pace, and whatever it does a request ends in one sentence."""
from __future__ import annotations

import gzip
import json
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.lm.writing import endpoint
from trainwright.lm.writing.writer import Request, Writer, loopback


def test_a_pace_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    now, slept = [100.0], list[float]()

    def wait(seconds: float) -> bool:
        slept.append(seconds)
        now[0] += seconds
        return False

    monkeypatch.setattr(endpoint, "time", SimpleNamespace(monotonic=lambda: now[0]))
    over = SimpleNamespace(wait=wait, is_set=lambda: False)
    pace = endpoint.Pace(1200)
    assert all(pace.wait(over) for _ in range(4)) and slept == pytest.approx([0.05] * 3)
    assert endpoint.Pace(0).wait(over) and len(slept) == 3                     # no limit
    called_off = SimpleNamespace(wait=lambda seconds: True, is_set=lambda: True)
    assert not pace.wait(called_off) and not endpoint.Pace(0).wait(called_off)


def completion(content: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


def http(body: bytes, *headers: str, status: str = "200 OK") -> bytes:
    return (
        "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body
    )


@contextmanager
def answering(sent: bytes, drip: float = 0.0) -> Iterator[str]:
    """A server that reads a request and sends these bytes whatever it was, or one byte
    each ``drip`` seconds."""
    server, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def serve(client: socket.socket) -> None:
        with client, suppress(OSError):
            head, _, body = client.recv(1 << 16).partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].split()[0])
            while len(body) < length:
                body += client.recv(1 << 16)
            for i in range(0, len(sent), 1 if drip else max(1, len(sent))):
                client.sendall(sent[i:i + 1] if drip else sent)
                if drip and over.wait(drip):
                    return

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    finally:
        over.set()
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join()


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The answer of an endpoint to one request, without waits between tries."""
    monkeypatch.setattr(endpoint, "WAIT", 0.0)
    monkeypatch.setattr(endpoint, "LONGEST_WAIT", 0.0)

    def asked(url: str, **settings: Any) -> str:
        writer = make(Writer, {"endpoint": url, "model": "m", **settings}, "asking")
        with writer.start("asking", Context(folder=tmp_path)) as writing:
            return next(answer for _, answer in writing.write([Request("r", "say")]))
    return asked


@pytest.mark.parametrize(("content", "text"), [
    ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"), (None, ""), ([], ""), ("a", "a"),
    ([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "b"}], "b")])
def test_contents_of_answers(ask: Callable[..., str], content: Any, text: str) -> None:
    with answering(http(completion(content))) as url:
        assert ask(url) == text


@pytest.mark.parametrize("pack", ["gzip", "deflate"])
def test_packed_answers_are_unpacked(ask: Callable[..., str], pack: str) -> None:
    body = gzip.compress(completion("a")) if pack == "gzip" else zlib.compress(completion("a"))
    with answering(http(body, f"Content-Encoding: {pack}")) as url:
        assert ask(url) == "a"


@pytest.mark.parametrize(("sent", "told"), [
    (http(gzip.compress(b" " * (64 << 20)), "Content-Encoding: gzip"), "more than 16,777,216 bytes"),
    (http(b" " * ((16 << 20) + 1)), "more than 16,777,216 bytes"),
    (http(b"no gzip", "Content-Encoding: gzip"), "incorrect header check"),
    (http(b"a", "Content-Encoding: br"), "packed as 'br', which was not asked for"),
    (http(b"[" * 200_000), "no chat completion"), (http(completion({"a": 1})), "no chat completion"),
    (http(completion(5)), "no chat completion"), (http(completion([{"type": "text"}])), "no chat completion"),
    (http(b"\xff{}"), "no chat completion"), (http(b"[]"), "no chat completion"),
    (b"SMTP ready\r\n\r\n", "RemoteProtocolError"), (b"", "RemoteProtocolError"),
    (http(b"", "Retry-After: \xc2\xb2", status="503 Busy"), "status 503"),
    (http(b"", "Location: http://127.0.0.1:1/", status="307 Elsewhere"), "status 307"),
    (http(b"a \x1b[31mred\x00 word", status="400 No"), r"status 400: a \\x1b\[31mred\\x00 word"),
])
def test_what_a_server_may_send(ask: Callable[..., str], sent: bytes, told: str) -> None:
    with answering(sent) as url, pytest.raises(UserError, match=told) as refused:
        ask(url)
    assert len(str(refused.value)) < 500 and "\x1b" not in str(refused.value)


@pytest.mark.parametrize("sent", [http(completion("a")), b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1000])
def test_an_answer_has_a_time_as_a_whole(
    ask: Callable[..., str], monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.3)
    monkeypatch.setattr(endpoint, "TRIES", 1)
    with (
        answering(sent, drip=0.05) as url,
        pytest.raises(UserError, match=r"no whole answer within 0\.3 seconds"),
    ):
        ask(url)


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "a." * 200 + "b", "\u00e4" * 70])
def test_a_host_that_cannot_be(ask: Callable[..., str], host: str) -> None:
    with pytest.raises(UserError, match=r"is no address|gave no answer"):
        ask(f"http://{host}/v1")


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("3", 3.0),
        (" 0.5 ", 0.5),
        ("\u00b2", 0.0),
        ("nan", 0.0),
        ("inf", 0.0),
        ("-1", 0.0),
        ("9" * 400, 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_how_long_a_server_asks_to_wait(said: str, seconds: float) -> None:
    assert endpoint.asked(said) == seconds


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"key_variable": "AWS_SECRET_ACCESS_KEY"}, "begins with TRAINWRIGHT_, not 'AWS_SECRET_ACCESS_KEY'"),
        ({"key_variable": "trainwright_key"}, "begins with TRAINWRIGHT_"),
        (
            {"key_variable": "TRAINWRIGHT_KEY", "endpoint": "http://example.org/v1"},
            "take https, or an address of this machine",
        ),
        ({"key_variable": "TRAINWRIGHT_KEY", "endpoint": "http://localhost.example.org/v1"}, "take https"),
        ({"key_variable": "TRAINWRIGHT_KEY", "endpoint": "http://127.0.0.1.example.org/v1"}, "take https"),
        ({"endpoint": "https://example.org/v1?key=sesame"}, "without user, password or query"),
        ({"endpoint": "https://example.org/v1#sesame"}, "without user, password or query"),
        ({"endpoint": "https://sesame@example.org/v1"}, "without user, password or query"),
        ({"endpoint": "https://example.org\\@127.0.0.1/v1"}, "without user, password or query"),
        ({"endpoint": "https://example.org/sesame@v1"}, "without user, password or query"),
    ],
)
def test_where_no_key_goes(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as refused:
        make(Writer, {"endpoint": "https://example.org/v1", "model": "m", **settings}, "asking")
    assert "sesame" not in str(refused.value)


@pytest.mark.parametrize("url", ["https://example.org/v1", "http://127.0.0.1:8000/v1", "http://localhost/v1",
                                 "http://[::1]:8000/v1", "http://127.1.2.3"])
def test_where_a_key_may_go(url: str) -> None:
    made = make(Writer, {"endpoint": url, "model": "m", "key_variable": "TRAINWRIGHT_KEY"}, "asking")
    assert made.endpoint == url


def test_what_is_this_machine() -> None:
    assert all(map(loopback, ("127.0.0.1", "127.8.8.8", "localhost", "::1")))
    assert not any(map(loopback, ("", "10.0.0.1", "localhost.org", "127.0.0.1.org", "0.0.0.0")))
