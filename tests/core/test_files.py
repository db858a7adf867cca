"""Files that may be anything: read where they are what they should be, written whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainwright.core import files
from trainwright.core.errors import UserError
from trainwright.core.files import Damaged


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zeros").symlink_to("/dev/zero")
    for name in ("folder", "pipe", "zeros"):
        with pytest.raises(Damaged, match=f"{name} is no regular file"):
            files.read_bytes(tmp_path / name)
    (tmp_path / "large").write_text("x" * 100)
    with pytest.raises(Damaged, match="large has 100 bytes, which is more than such a file ever has"):
        files.read_bytes(tmp_path / "large", 99)
    with pytest.raises(FileNotFoundError):
        files.read_bytes(tmp_path / "none")
    assert files.read_bytes(tmp_path / "large", 100) == b"x" * 100
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0
    for name in ("folder", "pipe", "zeros") * 10:
        with pytest.raises(Damaged):
            files.read_bytes(tmp_path / name)
    assert not before or len(os.listdir("/proc/self/fd")) == before, "each is closed"


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "9" * 5000, "\ud800"])
def test_what_is_no_json_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(text.encode(errors="surrogatepass"))
    with pytest.raises(Damaged, match=r"x\.json holds no JSON"):
        files.read_json(tmp_path / "x.json")


def test_what_is_read_otherwise_than_expected_names_its_file() -> None:
    told: Any = {"a": None}
    with pytest.raises(Damaged, match=r"it is damaged \(KeyError: 'b'\)"), files.expected(Path("it")):
        told["b"]
    with (
        pytest.raises(Damaged, match=r"it is damaged .*; remove it"),
        files.expected(Path("it"), "; remove it"),
    ):
        told["a"]["b"]
    with pytest.raises(ZeroDivisionError), files.expected(Path("it")):
        _ = 1 / 0


def test_a_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.json"
    files.write_json(file, {"a": "ü"})
    assert json.loads(file.read_text()) == {"a": "ü"} and os.listdir(tmp_path) == ["x.json"]

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": "ü"} and os.listdir(tmp_path) == ["x.json"]


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("mine")
    (tmp_path / "x").symlink_to(tmp_path / "outside")
    files.write_text(tmp_path / "x", "new")
    assert (tmp_path / "outside").read_text() == "mine" and not (tmp_path / "x").is_symlink()
    (tmp_path / "y").symlink_to(tmp_path / "outside")
    with pytest.raises(UserError, match="y is a link: a store writes within itself only"):
        files.room(tmp_path / "y")
    assert files.without_links(tmp_path) == tmp_path and not os.path.lexists(tmp_path / "y")
