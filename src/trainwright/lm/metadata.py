"""What the documents of a corpus say of themselves, found by where their tokens lie."""
from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.core.errors import UserError, suggest
from trainwright.corpus.tokens import Encoder, open_corpus
from trainwright.lm.rows import SHARD

COLUMNS = ("domain", "source")
"""Columns that a field may name; any other is a key of a document's metadata."""


class Metadata(NamedTuple):
    """One field of all documents of a corpus."""

    starts: NDArray[np.int64]
    """Addresses of the documents' first tokens, in order."""
    which: NDArray[np.int64]
    """For each the index of what it says; -1 where it says nothing."""
    said: tuple[str, ...]

    def document(self, address: int) -> int:
        """The document in which the token at an address lies."""
        return int(np.searchsorted(self.starts, address, side="right")) - 1


def host(value: str) -> str:
    """Of a URL the host, ``en.wikipedia.org``; anything else as it is."""
    return value.partition("://")[2].partition("/")[0] if "://" in value else value


@lru_cache(maxsize=4)
def metadata_of(folder: Path, field: str) -> Metadata:
    """The field of each document of the corpus in ``folder``, read once in a process.

    Raises:
        UserError: no document says it.
    """
    keys = Counter[str]()
    found = {name: host(told) for name, told in _told(folder, field, keys)}
    if not found:
        known = (*COLUMNS, *(key for key, _ in keys.most_common(8)))
        raise UserError(f"no document of the corpus says {field!r}{suggest(field, known)}: they say "
                        f"{', '.join(known)}.")
    index = pq.read_table(folder / "tokens" / "index.parquet", columns=["id", "shard", "offset"])
    starts = index["shard"].to_numpy().astype(np.int64) * SHARD + index["offset"].to_numpy().astype(np.int64)
    said = tuple(sorted(set(found.values())))
    number = {text: i for i, text in enumerate(said)}
    which = np.array([number.get(found.get(name, ""), -1) for name in index["id"].to_pylist()],
                     dtype=np.int64)
    order = np.argsort(starts, kind="stable")
    return Metadata(starts[order], which[order], said)


def _told(folder: Path, field: str, keys: Counter[str]) -> Iterator[tuple[str, str]]:
    """Id and value of each document that says something; counts the keys of its metadata."""
    column = field if field in COLUMNS else "metadata"
    for file in sorted((folder / "documents").glob("*.parquet")):
        with pq.ParquetFile(file, pre_buffer=False) as parquet:
            batches = parquet.iter_batches(batch_size=1024, columns=["id", column])
            for row in (row for batch in batches for row in batch.to_pylist()):
                told = row[column]
                if column == "metadata":
                    table = json.loads(told or "{}")
                    keys.update(table)
                    told = table.get(field)
                if told not in (None, ""):
                    yield row["id"], str(told)


@lru_cache(maxsize=4)
def tokens_of(folder: Path, field: str, template: str) -> tuple[tuple[int, ...], ...]:
    """The tokens of the template filled with each of ``Metadata.said``; control tokens in it are text."""
    backend = Encoder(open_corpus(folder).tokenizer, None).backend
    return tuple(tuple(backend.encode(template.replace("{}", text), add_special_tokens=False).ids)
                 for text in metadata_of(folder, field).said)
