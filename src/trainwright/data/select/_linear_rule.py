"""A linear rule from the means of indicators over a set of documents to the log loss of a model that was tuned on the set."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.corpus.selecting import scores

if TYPE_CHECKING:
    from daft import DataFrame

TILT = 2.0
"""How much a subset prefers documents high in its combination of indicators, against noise (Gumbel) of size 1."""


def draw(values: NDArray[np.float64], size: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Rows of a subset of ``values`` [documents, indicators], without replacement: p ~ exp(TILT w'z) for a random unit vector
    w, z being the standardised indicators, so that the means of several subsets lie far apart in all directions."""
    spread = values.std(0)
    z = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    w = torch.randn(values.shape[1], generator=generator, dtype=torch.float64).numpy()
    uniform = torch.rand(len(values), generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12).numpy()
    key = TILT * (z @ (w / np.linalg.norm(w))) - np.log(-np.log(uniform))
    return np.argsort(-key, kind="stable")[:size]


def fit(names: Sequence[str], means: NDArray[np.float64], log_losses: NDArray[np.float64],
        method: str) -> tuple[NDArray[np.float64], float]:
    """Coefficients in the units of the indicators, and how much of the variance they tell of a subset left out of the fit.

    Args:
        means: [subsets, indicators].

    Raises:
        UserError: the subsets do not tell the indicators apart.
    """
    centre, spread = means.mean(0), means.std(0)
    flat = [name for name, s, c in zip(names, spread, centre, strict=True) if s <= 1e-9 * max(1.0, abs(c))]
    if flat:
        raise UserError(f"{method}: {flat[0]!r} has the same mean in all {len(means)} subsets, so that nothing can be learned "
                        "of it: leave it out, or take smaller subsets of a corpus in which it differs.")
    z = (means - centre) / spread
    if np.linalg.matrix_rank(z, tol=1e-6 * len(z) ** 0.5) < len(names):
        raise UserError(f"{method}: over the {len(means)} subsets the indicators {', '.join(names)} move together, so that it "
                        "cannot be told which of them matters: leave one out.")
    y = log_losses - log_losses.mean()
    slopes = np.linalg.lstsq(z, y, rcond=None)[0]
    hat = np.einsum("ij,ji->i", z, np.linalg.pinv(z)) + 1 / len(z)
    rest, whole = np.square((y - z @ slopes) / np.maximum(1 - hat, 1e-9)).sum(), np.square(y * len(z) / (len(z) - 1)).sum()
    return slopes / spread, float(1 - rest / whole) if whole else 0.0


def indicators(rows: DataFrame, names: tuple[str, ...], method: str) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Ids, sorted, and numbers [documents, indicators] of the documents that have them all."""
    if "length" in names and "length" not in rows.column_names:
        rows = rows.with_column("length", rows["text"].length())
    found = {name: dict(zip(*scores(rows, name, method), strict=True)) for name in names}
    ids = sorted(set.intersection(*map(set, found.values())))
    values = np.array([[found[name][one] for name in names] for one in ids]).reshape(len(ids), len(names))
    if len(wrong := np.argwhere(~np.isfinite(values))):
        document, indicator = wrong[0]
        raise UserError(f"{method}: the indicator {names[indicator]!r} of {ids[document]!r} is "
                        f"{values[document, indicator]}, no finite number.")
    return np.array(ids, dtype=object), values
