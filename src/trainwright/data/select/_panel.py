"""The losses of several models on the same documents."""
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.scoring import Reader, losses

if TYPE_CHECKING:
    from daft import DataFrame


class Panel(NamedTuple):
    """Documents sorted by id, so that their order does not matter; those with nothing to predict are left
    out."""

    ids: NDArray[np.object_]
    loss: NDArray[np.float64]
    """[documents, models], the models as in ``from.models``: mean nats a token."""
    tokens: NDArray[np.int64]
    """[documents, models]: tokens that were predicted."""


def panel(documents: DataFrame, ctx: Context, method: str, what: str, length: int,
          batch_tokens: int) -> Panel:
    """The losses of ``from.models`` on each document, with one model in memory at a time.

    Args:
        what: which models these are, in words, for the error.

    Raises:
        UserError: fewer than two models, one without a tokenizer, a loss that is not finite, nothing to
            predict in any document.
    """
    folders = ctx.inputs.get("models", [])
    if len(folders) < 2:
        raise UserError(f"{method} compares the losses of two models and more: write from = "
                        f"{{ models = [\"a\", \"b\"] }}, {what}; it has {len(folders)}.")
    read = [_sorted(losses(documents, Reader.of(folder, ctx, method, length, batch_tokens)))
            for folder in folders]
    ids = read[0]["id"].to_numpy().astype(object)
    tokens = np.stack([one["tokens"].to_numpy() for one in read], 1)
    loss = np.stack([one["loss"].fill_null(0.0).to_numpy() for one in read], 1)
    wrong = np.argwhere(~np.isfinite(loss))
    if len(wrong):
        document, model = wrong[0]
        raise UserError(f"{method}: the model in {folders[model]} has no number as its loss on some "
                        f"documents, the first {ids[document]!r}: it went wrong in training.")
    told = (tokens > 0).all(1)
    if not told.any():
        raise UserError(f"{method} has nothing to choose from: no document of the {len(ids):,} has a token "
                        "to predict.")
    return Panel(ids[told], loss[told], tokens[told])


def _sorted(table: pa.Table) -> pa.Table:
    return table.sort_by("id").combine_chunks()
