"""The laws of methods that curate documents: what comes out depends on what came in, and on nothing else."""
from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from trainwright.check import documents as made_up
from trainwright.check import tiny
from trainwright.check.laws import difference, expect, law
from trainwright.check.subject import Subject
from trainwright.core.errors import UserError
from trainwright.core.method import Curate

if TYPE_CHECKING:
    from daft import DataFrame

ODD = ("", " \n\t ", "\u0000\u202e", "e\u0301 \u00e9 \ufb01 \u1e9e", "\U0001f469\u200d\U0001f467" * 40,
       "\uffff", "no end" * 400)
"""Texts that careless code breaks on."""
CLOSE = 1e-4
"""How far a number may be off that is computed a batch at a time, where the batches are others."""


def rows() -> Iterator[dict[str, Any]]:
    """The documents of the tiny corpus, strange ones, one that was written from another, and preference
    pairs of messages and of plain text."""
    usual = {"domain": "odd", "source": "made up", "metadata": "{}"}
    yield from made_up.rows()
    for i, text in enumerate(ODD):
        yield usual | {"id": f"odd/{i}", "text": text}
    written = {"id": "prose/2#again", "domain": "prose", "origin": "prose/2"}
    yield usual | written | {"text": "the farmer sows again"}
    turns = {part: json.dumps([{"role": role, "content": f"{part} apples"}])
             for part, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))}
    yield usual | turns | {"id": "pair/0", "text": "prompt apples\n\nchosen apples"}
    words = {"prompt": '"how many?"', "chosen": '"two"', "rejected": '"none"'}
    yield usual | words | {"id": "pair/1", "text": "how many?two"}


def table(given: Sequence[dict[str, Any]], read: list[bool]) -> DataFrame:
    """These rows as a lazy table, with the columns ``score``, a number, and ``embedding``, four of them;
    ``read`` has an entry once it is read."""
    import daft
    import pyarrow as pa

    from trainwright.corpus import sources, tokens

    def reader() -> Iterator[dict[str, Any]]:
        read.append(True)
        yield from given

    def place(ids: Any, salts: str) -> list[list[float]]:
        return [[tokens.uniform(name, salt) for salt in salts] for name in ids.to_arrow().to_pylist()]

    @daft.func.batch(return_dtype=daft.DataType.float64())  # type: ignore[untyped-decorator]
    def score(ids: Any) -> Any:
        return pa.array([one for one, in place(ids, "a")], pa.float64())

    @daft.func.batch(return_dtype=daft.DataType.list(daft.DataType.float32()))  # type: ignore[untyped-decorator]
    def embedding(ids: Any) -> Any:
        return pa.array(place(ids, "abcd"), pa.large_list(pa.float32()))

    made = sources.table("given", [reader])
    return made.with_columns({"score": score(made["id"]), "embedding": embedding(made["id"])})


def applied(it: Subject, given: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What the method makes of these rows."""
    from trainwright.corpus import documents
    method = it.make()
    made = documents.standard(method.apply(table(given, []), tiny.curating(it.place())), method.name)
    return [row for batch in documents.stream(made) for row in batch.to_pylist()]


def curated(it: Subject) -> list[dict[str, Any]]:
    """What the method makes of all of them, made once for all laws."""
    return it.once("curated", partial(applied, it, list(rows())))


@law(Curate)
def rows_are_the_same_twice(it: Subject) -> None:
    """Strange documents pass, the standard columns stay, and the same table gives the same rows."""
    method = it.make()
    first, second = (sorted(repr(row) for row in made) for made in (curated(it), applied(it, list(rows()))))
    expect(not difference(first, second), "the same table gives other rows when it is applied again")
    names = [method.depends(it.folder) for _ in range(2)]
    same = isinstance(names[0], str) and names[0] == names[1]
    expect(same, f"depends must be one string, the same twice: {names}")


@law(Curate)
def ids_stay_unique(it: Subject) -> None:
    """No two documents that come out have one id, where no two have it that come in."""
    names = sorted(row["id"] for row in curated(it))
    twins = [one for one, other in pairwise(names) if one == other]
    expect(not twins, f"several documents that come out have one id, such as {twins[:1]}")


@law(Curate)
def the_order_of_rows_does_not_matter(it: Subject) -> None:
    """The same documents come out in whatever order they come in; numbers differ by rounding at most."""
    other = list(rows())
    random.Random(0).shuffle(other)
    one, two = ({row["id"]: row for row in made} for made in (curated(it), applied(it, other)))
    strange = sorted(one.keys() ^ two.keys())
    expect(not strange, f"another order of the rows gives other documents, such as {strange[:1]}")
    for name, row in one.items():
        at = next((column for column, value in row.items() if not _near(value, two[name][column])), None)
        expect(at is None, f"another order of the rows gives the document {name!r} another {at}")


def _near(one: Any, two: Any) -> bool:
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(_near(a, b) for a, b in zip(one, two, strict=True))
    if isinstance(one, float) and isinstance(two, float):
        return one == two or (one != one and two != two) or abs(one - two) <= CLOSE * max(1.0, abs(one))
    return bool(one == two)


@law(Curate)
def rows_stream_through_it(it: Subject) -> None:
    """``apply`` says what is to be done and does none of it: rows are read when somebody takes them."""
    read: list[bool] = []
    with suppress(UserError):                                # it has looked, and found nothing
        it.make().apply(table([], read), tiny.curating(it.place()))
    expect(not read, "apply reads documents before anybody takes the rows that it returns; if it must "
                     "compare them all, say why in expected_failures")


@law(Curate)
def what_it_edits_is_learned(it: Subject) -> None:
    """Conversations and pairs are learned from their messages: their text still is what those say."""
    from trainwright.corpus.editing import LEARNED, view
    for row in curated(it):
        shown = view(*(row[name] for name in LEARNED))
        expect(shown is None or shown == row["text"],
               f"the text of the document {row['id']!r} is not what its messages say, from which it is "
               "learned: edit documents with trainwright.corpus.editing.edit")


@law(Curate)
def what_it_writes_has_its_origin(it: Subject) -> None:
    """A document that comes out only where others come in is written from one of them, and says from which,
    or from which that one was written."""
    known = {row["id"] for row in rows()}
    written = [row for row in curated(it) if row["id"] not in known]
    if not written:
        return
    firsthand = {row["id"] for row in it.once("curated from nothing", partial(_from_nothing, it))}
    origins = known | {row["origin"] for row in rows() if row.get("origin")}
    for row in written:
        expect(
            row["id"] in firsthand or row["origin"] in origins,
            f"it writes the document {row['id']!r} with the origin {row['origin']!r}, which is no document "
            "that came in: it must have the split of what it was written from (document(origin = ...))",
        )


def _from_nothing(it: Subject) -> list[dict[str, Any]]:
    try:
        return applied(it, [])
    except UserError:                                        # nothing to read, so nothing to write from
        return []
