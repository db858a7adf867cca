"""Documents as points: their embeddings, and clusters of points."""
from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.corpus.selecting import columns, need

if TYPE_CHECKING:
    from daft import DataFrame


class Clusters(NamedTuple):
    """What k-means found."""

    label: NDArray[np.int64]
    """The cluster of each point."""
    centre: NDArray[np.float64]
    """[clusters, dimensions]."""


def need_sklearn(method: str) -> str:
    """The version of scikit-learn, on which what is chosen may depend.

    Raises:
        UserError: it is not installed.
    """
    try:
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f'{method} needs scikit-learn: pip install "trainwright[select]".') from None


def points(documents: DataFrame, column: str, method: str) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Ids, sorted, and embeddings [documents, dimensions]; documents without one (null) are left out.

    Raises:
        UserError: no such column, one that holds no lists of numbers of one length, NaN, no embedding at
            all.
    """
    need(documents, column, method, "embed writes one")
    table = columns(documents, "id", column)
    kind = table[column].type
    if not (_is_list(kind) and pa.types.is_floating(kind.value_type)):
        raise UserError(f"{method} reads the column {column!r} as embeddings; it holds {kind}, not lists of "
                        "numbers.")
    table = table.filter(table[column].is_valid()).sort_by("id").combine_chunks()
    if not table.num_rows:
        raise UserError(f"{method} has nothing to choose from: no document has an embedding in the column "
                        f"{column!r}.")
    sizes = pc.unique(pc.list_value_length(table[column])).to_pylist()
    if len(sizes) > 1:
        raise UserError(f"{method}: the embeddings in the column {column!r} are of several lengths "
                        f"({min(sizes)}, {max(sizes)}): they were not made by one model.")
    ids = table["id"].to_numpy().astype(object)
    flat = pc.list_flatten(table[column]).fill_null(float("nan")).to_numpy().astype(np.float64)
    rows = flat.reshape(len(ids), sizes[0])
    if len(wrong := ids[~np.isfinite(rows).all(1)]):
        raise UserError(f"{method}: {len(wrong):,} of {len(ids):,} documents have an embedding with an entry "
                        f"that is no number, the first {wrong[0]!r}.")
    return ids, rows


def kmeans(rows: NDArray[np.float64], clusters: int, generator: torch.Generator, method: str) -> Clusters:
    """Euclidean k-means of scikit-learn; fewer clusters than asked for where fewer points are different.

    Raises:
        UserError: scikit-learn is not installed.
    """
    need_sklearn(method)
    from sklearn.cluster import KMeans
    seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
    found = KMeans(min(clusters, len(np.unique(rows, axis=0))), random_state=seed).fit(rows)
    return Clusters(found.labels_.astype(np.int64), found.cluster_centers_)


def _is_list(kind: pa.DataType) -> bool:
    return any(is_kind(kind)
               for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1; zeros stay."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
