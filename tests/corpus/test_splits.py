"""A document is in the split that its id says, and what is written from it is there too."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.corpus.corpora import Chosen, build, texts
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus import splits
from trainwright.corpus.tokens import SPLITS, Corpus


class Rephrased(Curate):
    """Writes ``each`` documents from every one that comes in, and says from which; drops the others on
    demand."""

    each: int = 1
    """Documents written from one."""
    mark: str = "#"
    """What stands behind the id of the original."""
    domain: str = ""
    """Their domain; default: that of the original."""
    alone: bool = False
    """Whether the originals are dropped."""

    def apply(self, documents: Any, ctx: Any) -> Any:
        from trainwright.corpus.selecting import columns
        from trainwright.corpus.sources import document, table, union
        found = columns(documents, "id", "text", "domain").to_pylist()

        def rows() -> Any:
            for one in found:
                for i in range(self.each):
                    yield document(id=f"{one['id']}{self.mark}{i}", text=f"{one['text']} again",
                                   source="rephrased",
                                   domain=self.domain or one["domain"], origin=one["id"])
        return union(documents.limit(0) if self.alone else documents, table("rephrased", [rows]))


def split_of(folder: Path) -> dict[str, str]:
    read, found = Corpus(folder), {}
    for split in SPLITS:
        found |= dict.fromkeys(read.select(split).id.tolist(), split)
    return found


def test_splits_follow_the_id_and_no_domain_is_left_out() -> None:
    ids = np.array([f"x{i}" for i in range(5000)] + ["p", "q", "r"] + ["lonely"], dtype=object)
    domains = np.array(["big"] * 5000 + ["small"] * 3 + ["one"], dtype=object)
    found = splits.by_hash(ids, domains, 0.01, 0.02)
    share = np.bincount(found[:5000], minlength=3) / 5000
    assert abs(share[1] - 0.01) < 0.005 and abs(share[2] - 0.02) < 0.007
    assert sorted(found[5000:5003]) == [0, 1, 2] and found[5003] == 0
    more = splits.by_hash(np.append(ids[:5000], "new"), np.append(domains[:5000], "big"), 0.01, 0.02)
    assert (more[:5000] == found[:5000]).all(), "a document more moves no other"
    assert not splits.by_hash(ids, domains, 0.0, 0.0).any()
    assert set(splits.by_hash(ids[5000:5003], domains[5000:5003], 0.5, 0.49)) == {0, 1, 2}


def test_no_rephrase_of_a_document_that_is_held_out_is_trained_on(tmp_path: Path) -> None:
    """Of 25 documents held back, 19 had their rephrase in train when a rephrase's own id decided."""
    build(tmp_path / "plain", texts(345), tune=0.03, test=0.07)
    build(tmp_path / "both", texts(345), Rephrased(), tune=0.03, test=0.07)
    before, after = split_of(tmp_path / "plain"), split_of(tmp_path / "both")
    held = [name for name, split in before.items() if split != "train"]
    assert len(held) == 25 and len(after) == 690
    assert {name: after[name] for name in before} == before, "first-hand documents stay where they are"
    assert sum(after[f"{name}#0"] == "train" for name in held) == 0
    assert all(after[f"{name}#0"] == after[name] for name in before)


@pytest.mark.parametrize("first", [Rephrased(alone=True), Rephrased(domain="new"),
                                   Rephrased(alone=True, domain="new", each=3)])
def test_a_chain_of_writers_leads_back_to_the_first_document(tmp_path: Path, first: Rephrased) -> None:
    build(tmp_path / "plain", texts(60), tune=0.1, test=0.2)
    build(tmp_path / "chain", texts(60), first, Rephrased(alone=first.alone, each=2, mark="#again"), tune=0.1,
          test=0.2)
    before, after = split_of(tmp_path / "plain"), split_of(tmp_path / "chain")
    assert all(split == before[name.partition("#")[0]] for name, split in after.items())
    assert len(after) == (60 * first.each * 2 if first.alone else 120 * 3)


def test_a_writer_in_a_later_stage_adds_to_the_documents_for_training(tmp_path: Path) -> None:
    build(tmp_path / "raw", texts(60), Rephrased(), tune=0.1, test=0.2)
    raw = split_of(tmp_path / "raw")
    build(tmp_path / "more", None, Rephrased(mark="#later"), data=tmp_path / "raw",
          tokenizer=str(tmp_path / "raw"))
    more = split_of(tmp_path / "more")
    train = {name for name, split in raw.items() if split == "train"}
    assert {name: more[name] for name in raw} == raw
    assert {name for name in more if name not in raw} == {f"{name}#later0" for name in train}
    assert all(more[name] == "train" for name in more if name not in raw)


def test_what_is_written_from_a_document_held_back_earlier_is_held_back(tmp_path: Path) -> None:
    """By a method that looks where it should not."""
    class Leaks(Curate):
        def apply(self, documents: Any, ctx: Any) -> Any:
            from trainwright.corpus.sources import document, table, union
            rows = [document(id=f"{name}#leak", text=f"leak {name}", domain="d", source="s",
                             origin=name) for name in raw]
            return union(documents, table("leaks", [rows.__iter__]))

    build(tmp_path / "raw", texts(40), tune=0.1, test=0.2)
    raw = split_of(tmp_path / "raw")
    build(tmp_path / "more", None, Leaks(), data=tmp_path / "raw", tokenizer=str(tmp_path / "raw"))
    more = split_of(tmp_path / "more")
    assert len(more) == 80 and all(more[f"{name}#leak"] == split for name, split in raw.items())


def test_a_root_that_was_dropped_still_decides(tmp_path: Path) -> None:
    build(tmp_path / "plain", texts(60), tune=0.1, test=0.2)
    kept = tuple(f"d/{i:04d}#0" for i in range(60)) + tuple(f"d/{i:04d}" for i in range(0, 60, 2))
    build(tmp_path / "some", texts(60), Rephrased(), Chosen(ids=kept), tune=0.1, test=0.2)
    before, after = split_of(tmp_path / "plain"), split_of(tmp_path / "some")
    assert len(after) == 90 and all(split == before[name.partition("#")[0]] for name, split in after.items())


def test_roots_by_hand() -> None:
    seen = {"b": "a", "c": "b", "e": "elsewhere", "same": "same"}
    assert splits.roots({"c": "b", "e": "elsewhere", "same": "same"}, seen) == {"c": "a", "e": "elsewhere"}
    with pytest.raises(UserError, match="in a circle: y, x"):
        splits.roots({"x": "y"}, {"x": "y", "y": "x"})


def test_siblings_of_a_root_that_nobody_knows_stay_together() -> None:
    ids = np.array([f"{i}#{j}" for i in range(50) for j in range(4)], dtype=object)
    domains = np.full(len(ids), "d", dtype=object)
    found = splits.assign(ids, domains, 0.1, 0.2, {name: name.partition("#")[0] for name in ids}, {})
    assert all(len(set(found[4 * i:4 * i + 4])) == 1 for i in range(50)) and set(found) == {0, 1, 2}
    alone = splits.by_hash(np.array([str(i) for i in range(50)], dtype=object), domains[:50], 0.1, 0.2)
    assert found[::4].tolist() == alone.tolist()
