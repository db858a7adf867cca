"""In-context pretraining: the walk by hand, rows that hold each document once, and likeness within a row."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.corpus.corpora import build
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch, Curate
from trainwright.core.settings import make
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.iclm import _walk
from trainwright.data.order.iclm.iclm import Iclm
from trainwright.lm.rows import SHARD

WORDS = ["oak", "elm", "fir", "ash", "yew", "bay", "fig", "box", "may", "nut"]
TOPICS = 6


class Embedded(Curate):
    """A column that knows the topic of a document, which its id begins with, and a little more."""

    bad: str = ""
    """What is wrong with it."""

    def apply(self, documents: Any, ctx: Context) -> Any:
        import pyarrow as pa

        from trainwright.corpus.selecting import attach, columns
        ids = columns(documents, "id")["id"].to_pylist()
        made: list[Any] = []
        for name in sorted(ids):
            draw = torch.Generator().manual_seed(int(name[2:]))
            made.append((np.eye(TOPICS)[int(name[0])]
                         + 0.1 * torch.randn(TOPICS, generator=draw).numpy()).tolist())
        made[3] = (
            None if not self.bad else made[3] + [0.0] if self.bad == "length" else [float("nan")] * TOPICS
        )
        told = pa.table({"id": pa.array(sorted(ids), pa.large_string()),
                         "embedding": pa.array(made, pa.list_(pa.float32()))})
        return attach(documents, told)


def documents(copies: int = 0) -> list[dict[str, Any]]:
    draw = np.random.default_rng(0)
    rows = [{"id": f"{i % TOPICS}/{i:03d}",
             "text": f"{i} " + " ".join(draw.choice(WORDS, draw.integers(2, 9)))}
            for i in range(90)]
    return rows + [{"id": f"{i % TOPICS}/{200 + i}", "text": rows[i]["text"]} for i in range(copies)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("iclm") / "corpus"
    build(place, documents(), Embedded(), tune=0.0, test=0.0)
    return place


def context(folder: Path, seed: int = 0) -> Context:
    return Context(inputs={"data": [folder]}, batch_rows=4, steps=1000, seed=seed)


def epoch(folder: Path, number: int = 0, seed: int = 0, **settings: Any) -> Batch:
    found = Iclm(**{"length": 40, "near_duplicates": 1.0} | settings).contexts(context(folder, seed))
    return found.batch([("d", number * found.total + i) for i in range(found.total)])


def test_the_walk_by_hand() -> None:
    """0 - 1 - 2 in a line and 3 alone: the lone one has no edge and is first, then an end of the line."""
    near, like = np.array([[1], [0], [1]]), np.array([[0.9], [0.9], [0.8]], dtype=np.float32)
    assert _walk.walk(near, like).tolist() == [0, 1, 2], "both ends have one edge; the first is taken"
    line = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]], dtype=np.float32)
    near, like = _walk.neighbours(line, 1)
    assert near.ravel().tolist() == [1, 0, 1, 2] and like[2] == pytest.approx(0.6)
    both_ways = "to the most similar neighbour that is left: edges go both ways"
    assert _walk.walk(near, like).tolist() == [0, 1, 2, 3], both_ways
    star = np.array([[1], [0], [0], [0]]), np.array([[0.9], [0.9], [0.5], [0.7]], dtype=np.float32)
    dead_end = "a dead end at 3: on from the one of fewest edges that is left"
    assert _walk.walk(*star).tolist() == [1, 0, 3, 2], dead_end


@pytest.mark.parametrize("column", ["embedding", ""])
def test_an_epoch_has_every_token_of_every_document_once(folder: Path, column: str) -> None:
    corpus = open_corpus(folder)
    found = corpus.select("train")
    wanted = sorted(int(s) * SHARD + int(o) + k
                    for s, o, n in zip(found.shard, found.offset, found.length, strict=True)
                    for k in range(int(n)))
    for number in (0, 1):
        batch = epoch(folder, number, column=column)
        read = batch["address"][batch["address"] >= 0].tolist()
        assert len(set(read)) == len(read) == len(wanted) - 1, "the last token of all is a target only"
        assert set(read) < set(wanted)
        assert int((batch["targets"] >= 0).sum()) == len(read), "all but the first learned"
    assert not torch.equal(epoch(folder, 0)["input_ids"],
                           epoch(folder, 1)["input_ids"]), "rows in another order"


def test_documents_of_a_row_see_each_other_and_predict_the_next(folder: Path) -> None:
    batch = epoch(folder)
    assert torch.equal(batch["position_ids"],
                       torch.arange(40).expand_as(batch["input_ids"])), "nothing restarts"
    inner = (batch["document"][:, 1:] >= 0)
    assert bool((batch["targets"][:, :-1] == batch["input_ids"][:, 1:])[inner].all())
    assert int(batch["document"].max()) > 1


@pytest.mark.parametrize("seed", range(3))
def test_documents_of_a_row_are_more_alike_than_in_random_order(folder: Path, seed: int) -> None:
    method = Iclm(length=40, near_duplicates=1.0)
    found = method.contexts(context(folder, seed))
    assert found.likeness > 0.8 and found.random < 0.4
    stream = found.domains["d"].found
    follows = np.mean([a[0] == b[0] for a, b in zip(stream.id, stream.id[1:], strict=False)])
    assert sorted(stream.id) == sorted(open_corpus(folder).select("train").id) and follows > 0.9
    ctx = context(folder, seed)
    state = method.init(nn.Identity(), ctx)
    method.next(pytest.fail, state, ctx)  # type: ignore[arg-type]
    assert ctx.notes["similarity_in_context"][0][0] == found.likeness
    words = Iclm(length=40, column="", near_duplicates=1.0).contexts(ctx)
    assert words.likeness > 1.3 * words.random, "by the words alone too"


def test_copies_next_to_each_other_are_left_out(tmp_path: Path) -> None:
    """Thirty exact copies: with the vectors of words a copy stands beside its original."""
    build(tmp_path / "c", documents(copies=30), tune=0.0, test=0.0)
    kept = Iclm(length=40, column="").contexts(context(tmp_path / "c"))
    assert kept.duplicates >= 27 and len(kept.domains["d"].found) == 120 - kept.duplicates
    assert Iclm(length=40, column="", near_duplicates=1.0).contexts(context(tmp_path / "c")).duplicates == 0
    assert _walk.distinct(np.arange(4), ["abcdef", "abcdef", "xyz", "abcdef"], 0.85).tolist() == [0, 2, 3]


def test_mistakes_are_said(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"'embeding' of the documents.*'embedding'"):
        Iclm(column="embeding").contexts(context(folder))
    with pytest.raises(UserError, match="holds large_string, not lists"):
        Iclm(column="text").contexts(context(folder))
    for bad, told in (("length", "of one length"), ("nan", "not finite")):
        build(tmp_path / bad, documents(), Embedded(bad=bad), tune=0.0, test=0.0)
        with pytest.raises(UserError, match=told):
            Iclm().contexts(context(tmp_path / bad))
    with pytest.raises(UserError, match="near_duplicates"):
        make(Iclm, {"near_duplicates": 0.0}, "here")
    ctx = context(folder)
    ctx.knobs["mixture"] = {"elsewhere": 1.0}
    with pytest.raises(UserError, match="'elsewhere'"):
        method = Iclm(length=40)
        method.next(pytest.fail, method.init(nn.Identity(), ctx), ctx)  # type: ignore[arg-type]
