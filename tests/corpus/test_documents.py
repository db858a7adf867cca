"""The table: its engine is silent, complete or loud, and a failure is never lost."""
from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from trainwright.core.errors import UserError
from trainwright.corpus import documents
from trainwright.corpus.sources import document, table, union, union_of


def good(n: int = 10, prefix: str = "") -> list[Any]:
    return [document(id=f"{prefix}{i}", text="t", domain="d", source="s") for i in range(n)]


def late() -> Iterator[Any]:
    yield from good(3000)
    raise UserError("x.jsonl, line 3001: broken.")


def read(frame: Any) -> list[Any]:
    return [row for batch in documents.stream(frame) for row in batch.to_pylist()]


@pytest.mark.slow
def test_a_failure_beside_another_table_is_raised_each_time() -> None:
    """The engine's union of a reader that fails and one that is done lets about every other failure pass."""
    for _ in range(40):
        with pytest.raises(UserError, match=r"x\.jsonl, line 3001: broken\."):
            read(union(documents.empty(), table("late", [late])))
    assert len(read(union(documents.empty(),
                          table("good", [good])))) == 10, "the next table is not blamed for it"


def test_order_is_that_of_the_readers_and_unions_fill_with_null() -> None:
    first = table("a", [lambda: good(2000, "a"), lambda: good(5, "b")])
    second = table("c", [lambda: good(3, "c")]).with_column("score", documents.daft.lit(1.5))
    found = read(union_of([documents.empty(), first, second]))
    assert [r["id"] for r in found] == [r["id"] for r in [*good(2000, "a"), *good(5, "b"), *good(3, "c")]]
    assert {r["score"] for r in found[:2005]} == {None} and {r["score"] for r in found[2005:]} == {1.5}


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'engine = "ray" needs Ray: pip install "trainwright\[ray\]"'):
        documents.start("ray")
