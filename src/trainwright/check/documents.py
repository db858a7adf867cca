"""The few dozen documents on which laws are tried: plain ones of two domains, conversations, and pictures."""
from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from trainwright.core.context import Context
from trainwright.core.method import Curate
from trainwright.corpus.editing import BETWEEN

if TYPE_CHECKING:
    from daft import DataFrame

SIDE = 8
"""Pixels of a picture's side."""
WORDS = {
    "prose": "the old farmer sows wheat and barley while rain falls over a quiet valley — "
    "grüne Äcker, пшеница, 麦",
    "code": "def walk ( node ) : while node is not None yield node.value ; return left [ 0 ] += 1 # größer",
    "chat": "please tell me how many apples are left in that basket or "
    "whether we should pick some more today",
}
"""What the documents of each domain are made of; a method's example may name these domains."""


def rows() -> Iterator[dict[str, str | None]]:
    """Plain documents of two domains, and conversations as a third, so that every objective finds something.

    They are short: in rows of 32 tokens several meet, and an answer is not cut away. The label of each is its
    domain. A conversation is a preference pair as well, of what it says and the same words turned around.
    """
    draw = random.Random(0)
    for number in range(120):
        domain = list(WORDS)[number % 3]
        longest = 3 if domain == "chat" else 9
        said = [" ".join(draw.choices(WORDS[domain].split(), k=draw.randrange(1, longest))) for _ in range(2)]
        turns = [{"role": "user", "content": said[0]}, {"role": "assistant", "content": said[1]}]
        text, messages = (
            (BETWEEN.join(said), json.dumps(turns)) if domain == "chat" else (". ".join(said), None)
        )
        pair = {} if messages is None else {
            "prompt": json.dumps(turns[:1]), "chosen": json.dumps(turns[1:]),
            "rejected": json.dumps([turns[1] | {"content": f"not {said[1][::-1]}"}])}
        yield pair | {
            "id": f"{domain}/{number}",
            "text": text,
            "domain": domain,
            "source": "made up",
            "metadata": "{}",
            "messages": messages,
            "label": domain,
        }


def picture(number: int) -> bytes:
    """A PNG, the same for a number on every machine."""
    from PIL import Image
    draw, out = random.Random(number), io.BytesIO()
    Image.frombytes("RGB", (SIDE, SIDE), draw.randbytes(SIDE * SIDE * 3)).save(out, "PNG")
    return out.getvalue()


def table(extra: Sequence[dict[str, str | None]] = ()) -> DataFrame:
    """Those documents as the first method of a corpus would hand them on."""
    import daft
    import pyarrow as pa

    from trainwright.corpus.columns import ARROW
    return daft.from_arrow(pa.Table.from_pylist([*rows(), *extra], ARROW))


def scored(documents: DataFrame) -> DataFrame:
    """The table with columns that other methods would have written: ``score``, a number, and ``embedding``,
    four of them."""
    import daft
    import pyarrow as pa

    from trainwright.corpus import documents as tables
    from trainwright.corpus import tokens
    ids = [row["id"] for batch in tables.stream(documents.select("id")) for row in batch.to_pylist()]
    place = [[tokens.uniform(name, salt) for salt in ("a", "b", "c", "d")] for name in ids]
    told = pa.table({"id": pa.array(ids, pa.large_string()), "score": [p[0] for p in place],
                     "embedding": pa.array(place, pa.list_(pa.float32()))})
    return documents.join(daft.from_arrow(told), on="id")


class Sentences(Curate):
    """The documents above."""

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        return table()


class Illustrated(Curate):
    """The plain ones of them, each with a picture."""

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import daft
        import pyarrow as pa

        from trainwright.corpus.columns import ARROW
        from trainwright.corpus.media import keeper
        keep = keeper(ctx)
        assert keep is not None
        plain = [row for row in rows() if row["messages"] is None]
        shown = [row | {"image": keep(picture(number), "image")} for number, row in enumerate(plain)]
        return daft.from_arrow(pa.Table.from_pylist(shown, ARROW))
