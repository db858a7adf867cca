"""Tables of documents for tests of curating methods."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import daft
import pyarrow as pa

from trainwright.corpus.columns import ARROW
from trainwright.corpus.documents import stream
from trainwright.corpus.sources import document


def frame(rows: Sequence[dict[str, Any]], **columns: Sequence[Any]) -> Any:
    """A table of documents given by hand; what a row leaves out is filled in. ``columns`` stand beside the
    standard ones."""
    full = [document(**{"id": str(i), "domain": "d", "source": "test"} | row) for i, row in enumerate(rows)]
    table = pa.Table.from_pylist(full, ARROW)
    for name, values in columns.items():
        table = table.append_column(name, pa.array(values))
    return daft.from_arrow(table)


def told(table: Any) -> dict[str, dict[str, Any]]:
    """Rows by id."""
    return {row["id"]: row for batch in stream(table) for row in batch.to_pylist()}
