"""Random access to the documents of a corpus with their typed columns, without holding them in memory.

The documents lie in Parquet files in the order in which they came; here they have the order of their ids.
Held are ids, one number a document, and the row groups that were read last. Draw neighbours together where a
corpus is larger than ``CACHE_BYTES``: a row that is alone in its group costs the whole group.
"""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from trainwright.corpus.columns import ID

CACHE_BYTES = 256 << 20
"""Of row groups that are held, about."""
Group = tuple[int, int]
"""Numbers of a file and of a row group in it."""


class Examples:
    """The documents of a selection, sorted by id.

    Args:
        folder: of the corpus.
        ids: of the documents, sorted.
        domains: of each its place in the corpus' domains.
    """

    def __init__(self, folder: Path, ids: NDArray[np.object_], domains: NDArray[np.int64]) -> None:
        self.ids, self.domains = ids, domains
        self._files = sorted((folder / "documents").glob("*.parquet"))
        self._places = self._find()
        self._held: OrderedDict[tuple[Group, tuple[str, ...]], pa.Table] = OrderedDict()

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, numbers: Sequence[int], columns: Sequence[str]) -> list[dict[str, Any]]:
        """The documents with these numbers, in that order, with some of their columns; None where one has no
        value."""
        wanted: dict[Group, list[int]] = {}
        for i, number in enumerate(numbers):
            file, group, _ = self._places[number].tolist()
            wanted.setdefault((file, group), []).append(i)
        found: list[dict[str, Any]] = [{}] * len(numbers)
        for group, mine in sorted(wanted.items()):
            table = self._read(group, tuple(columns))
            taken = table.take(pa.array(self._places[[numbers[i] for i in mine], 2]))
            for i, row in zip(mine, taken.to_pylist(), strict=True):
                found[i] = row
        return found

    def _find(self) -> NDArray[np.int64]:
        """[documents, 3]: file, row group, and row in it."""
        found = np.full((len(self.ids), 3), -1, dtype=np.int64)
        for number, file in enumerate(self._files):
            with pq.ParquetFile(file, pre_buffer=False) as opened:
                for group in range(opened.num_row_groups):
                    names = opened.read_row_group(group, columns=[ID])[ID].to_numpy().astype(object)
                    at = np.searchsorted(self.ids, names)
                    at[at == len(self.ids)] = 0
                    mine = np.flatnonzero(self.ids[at] == names)
                    found[at[mine], 0], found[at[mine], 1], found[at[mine], 2] = number, group, mine
        return found

    def _read(self, group: Group, columns: tuple[str, ...]) -> pa.Table:
        key = group, columns
        if key not in self._held:
            with pq.ParquetFile(self._files[group[0]], pre_buffer=False) as opened:
                self._held[key] = opened.read_row_group(group[1], columns=list(columns)).combine_chunks()
            while len(self._held) > 1 and sum(t.nbytes for t in self._held.values()) > CACHE_BYTES:
                self._held.popitem(last=False)
        self._held.move_to_end(key)
        return self._held[key]
