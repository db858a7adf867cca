from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.corpus.test_selecting import rows
from trainwright.check import documents
from trainwright.core.context import Context
from trainwright.data.filter.spoil import Spoil


def made(folder: Path, **settings: Any) -> list[dict[str, Any]]:
    return rows(Spoil(**settings).apply(documents.table(), Context(folder=folder)))


def test_what_is_planted_is_known_and_of_the_share_that_was_asked(tmp_path: Path) -> None:
    found = made(tmp_path, duplicates=1.5, noise=0.5)
    plain = {r["id"]: r["text"] for r in found if r["source"] != "spoil"}
    planted = {what: [r for r in found if r["source"] == "spoil"
                      and json.loads(r["metadata"])["planted"] == what]
               for what in ("duplicate", "noise")}
    assert len(plain) == 120 and abs(len(planted["duplicate"]) - 120) < 15
    assert abs(len(planted["noise"]) - 40) < 15
    # 80 of 120 are no conversations
    assert len({r["id"] for r in found}) == len(found)
    assert all(r["origin"] == r["id"].partition("#")[0] for rows in planted.values() for r in rows)
    for row in planted["duplicate"]:
        original = plain[row["id"].split("#")[0]].split()
        other = row["text"].split()
        assert len(original) == len(other) and sum(a != b for a, b in zip(original, other, strict=True)) <= 1
    lengths = [len(r["text"].split()) == len(plain[r["id"].split("#")[0]].split()) for r in planted["noise"]]
    assert all(lengths)


def test_nothing_is_planted_where_nothing_is_asked(tmp_path: Path) -> None:
    assert made(tmp_path, duplicates=0.0, noise=0.0) == rows(documents.table())
