"""The documents of ``from.target``: what a selection is to be good for."""
from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from trainwright.core.context import Context
from trainwright.corpus.tokens import Document, open_corpus, uniform


def target_documents(ctx: Context, split: str, most: int, method: str) -> list[Document]:
    """Documents of a split of ``from.target``, sorted by id: all, or ``most`` of them drawn by seed and id.

    Raises:
        UserError: there is no such corpus, or it has no document in that split.
    """
    folder = ctx.path("target")
    ids = open_corpus(folder).select(split).id
    place = np.array([uniform(name, f"{method}/target/{ctx.seed}") for name in ids])
    wanted = pa.array(ids[np.sort(np.argsort(place, kind="stable")[:most])], pa.large_string())
    found = []
    for file in sorted((folder / "documents").glob("*.parquet")):
        table = pq.read_table(file, columns=["id", "text", "messages"])
        rows = table.filter(pc.is_in(table["id"].cast(pa.large_string()), value_set=wanted)).to_pylist()
        found += [Document(r["id"], r["text"] or "", r["messages"]) for r in rows]
    return sorted(found, key=lambda d: d.id)
