"""Planted leaks of five shapes: how many are found, and how many clean documents are taken for one."""
from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.data.frames import frame, told
from tests.evaluate.audit.planted import SHAPES, Planted, plant
from trainwright.core.context import Context
from trainwright.data.filter.decontaminate import Decontaminate
from trainwright.evaluate.audit._leaks import Leaks

DATA = Path(__file__).parents[3] / "docs" / "data.md"


@pytest.fixture(scope="module")
def planted() -> Planted:
    return plant()


def by_runs(planted: Planted, tmp_path: Path) -> dict[str, float]:
    """``decontaminate`` as it is by default: the share of documents that it drops."""
    (tmp_path / "exam").mkdir()
    for i, item in enumerate(planted.items):
        (tmp_path / "exam" / f"{i}.txt").write_text(item.text)
    rows = [{"id": f"{shape} {i}", "text": text} for shape, found in planted.leaks.items()
            for i, text in found.items()]
    rows += [{"id": f"clean {i}", "text": text} for i, text in enumerate(planted.clean)]
    ctx = Context(folder=tmp_path / "s", root=tmp_path)
    left = told(Decontaminate(files=("exam",)).apply(frame(rows), ctx))
    gone = [row["id"].split()[0] for row in rows if row["id"] not in left]
    every = [row["id"].split()[0] for row in rows]
    return {name: gone.count(name) / every.count(name) for name in (*SHAPES, "clean")}


def by_shares(planted: Planted) -> dict[str, float]:
    """What ``audit`` looks for: the share of items that are found in their documents of a shape, and of clean
    documents that are taken for one."""
    out = {}
    for shape in SHAPES:
        search = Leaks([one.text for one in planted.items])
        search.search((str(i), text) for i, text in planted.leaks[shape].items())
        out[shape] = sum(leak.document == str(leak.text) for leak in search.found()) / len(planted.items)
    search = Leaks([one.text for one in planted.items])
    search.search((str(i), text) for i, text in enumerate(planted.clean))
    taken = {leak.document for leak in search.found()}
    return out | {"clean": len(taken) / len(planted.clean)}


def test_recall_and_false_alarms_are_those_of_the_documentation(planted: Planted, tmp_path: Path) -> None:
    measured = {"decontaminate": by_runs(planted, tmp_path), "audit": by_shares(planted)}
    rows = re.findall(r"^\| (verbatim|re-wrapped|embedded|reordered|paraphrased|clean)[^|]*\| ([\d.]+) % "
                      r"\| ([\d.]+) % \|$", DATA.read_text(encoding="utf-8"), flags=re.M)
    written = {name: (float(a), float(b)) for name, a, b in rows}
    assert written == {name: tuple(round(100 * of[name], 1) for of in measured.values())
                       for name in (*SHAPES, "clean")}
    assert all(measured["audit"][shape] >= 0.95 for shape in SHAPES) and measured["audit"]["clean"] == 0


def test_a_share_by_hand() -> None:
    """Ten words are eight runs; a document with the first seven words has five of them."""
    ten = "a b c d e f g h i j"
    search = Leaks([ten, "too short for it", "k l m n o p q r s t"])
    assert search.searched.tolist() == [True, False, True]
    assert search.search([("x", "A, b c\nd e f g!"), ("y", "b c d"), ("z", "t s r q")]) == 3
    assert search.shares.tolist() == [5 / 8, 0, 0] and search.documents == ["x", "", ""]
    assert [tuple(leak) for leak in search.found()] == [(0, "x", 5 / 8)]


def test_templates_do_not_count_and_long_documents_are_cut() -> None:
    texts = [f"which of these is the right answer to it {' '.join(f'{n}w{i}' for i in range(12))}"
             for n in range(30)]
    search = Leaks(texts)
    search.search([("template", "which of these is the right answer to it"),
                   ("long", "x " * 3000 + texts[7] + " y" * 3000)])
    assert [(leak.text, leak.document) for leak in search.found()] == [(7, "long")]
