"""A folder is handed on to a Hub (here a small server of our own), and only where somebody asks for it."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub.constants as constants
import pytest

from trainwright.core.errors import UserError
from trainwright.families.hub import hub_name, upload


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload asks for."""

    heard: list[tuple[str, Any]]
    refuses = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        at = self.path.partition("?")[0]
        self.heard.append((at, body))
        answer: dict[str, Any] = {"url": "http://127.0.0.1/owner/mine", "name": "owner/mine"}
        if at.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            answer = {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                                for f in files]}
        elif at.endswith("/commit/main"):
            answer = {"success": True, "commitUrl": "http://127.0.0.1/owner/mine/commit/1", "commitOid": "1"}
        self.answer(403 if self.refuses else 200, answer)

    def do_GET(self) -> None:
        self.answer(404, {})

    def answer(self, code: int, what: Any) -> None:
        data = json.dumps(what).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    Hub.heard, Hub.refuses = [], False
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{made.server_address[1]}")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        yield Hub
        made.shutdown()


def test_a_folder_goes_to_a_private_repository(tmp_path: Path, server: type[Hub]) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "README.md").write_text("a card")
    assert "owner/mine" in upload(tmp_path, "owner/mine")
    made = next(json.loads(body) for at, body in server.heard if at == "/api/repos/create")
    assert made["name"] == "mine" and made["organization"] == "owner" and made["visibility"] == "private"
    commit = next(body for at, body in server.heard if at.endswith("/commit/main"))
    lines = [json.loads(line) for line in commit.splitlines()]
    files = {one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines
             if one["key"] == "file"}
    assert files == {"config.json": b"{}", "README.md": b"a card"}


def test_a_refusal_is_one_sentence_and_the_folder_stays(tmp_path: Path, server: type[Hub]) -> None:
    server.refuses = True
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"is written, but cannot be uploaded to owner/mine: .*; log in"):
        upload(tmp_path, "owner/mine")
    assert (tmp_path / "config.json").is_file()


@pytest.mark.parametrize("to", ["hub:mine", "owner/mine", "hub:a/b/c", "hub:/x", "hub:a/ b", "", "s3:a/b"])
def test_other_addresses_are_refused(to: str) -> None:
    with pytest.raises(UserError, match="write hub:OWNER/NAME"):
        hub_name(to)
    assert hub_name("hub:owner/my-model_1.0") == "owner/my-model_1.0"
