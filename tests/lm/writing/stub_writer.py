"""A writer by rule behind a real address, for tests of methods that let somebody write."""
from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from trainwright.core.settings import make

Rule = Callable[[str, dict[str, Any]], str]
"""What to answer to a prompt; it is given the whole request too."""


@dataclass
class Stub:
    """The running server and what it was asked."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    failing: Callable[[int], int] = lambda turn: 200
    """Status of the n-th request, from 0; not 200: it fails."""

    @property
    def prompts(self) -> list[str]:
        return [b["messages"][-1]["content"] for b in self.bodies]

    def table(self, **more: Any) -> dict[str, Any]:
        """The settings of a writer that asks here."""
        return {"endpoint": self.url, "model": "stub", "at_once": 2} | more

    def method(self, cls: type[Any], **settings: Any) -> Any:
        """A method as a recipe makes it, whose writer asks here."""
        return make(cls, settings | {"writer": self.table()}, "test")


@contextmanager
def serving(rule: Rule) -> Iterator[Stub]:
    """A server on a free port of this machine that answers chat completions by ``rule``."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # one packet for an answer: two would wait for each other
        wbufsize = -1

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                status = stub.failing(len(stub.bodies))
                stub.bodies.append(body)
                stub.keys.append(self.headers.get("Authorization"))
            found: dict[str, Any] = {"error": {"message": "no"}}
            if status == 200:
                said = rule(body["messages"][-1]["content"], body)
                found = {"choices": [{"message": {"role": "assistant", "content": said}}]}
            raw = json.dumps(found if self.path == "/v1/chat/completions" else {}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            return None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    stub = Stub(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
