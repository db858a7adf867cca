"""A threshold from the scores themselves: the valley between their two modes."""
from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trainwright.core.errors import UserError

DEPTH = 0.1
"""How far the density must rise from a valley to the lower of its two modes, as a share of the highest."""
BINS = 512


def valley(values: NDArray[np.float64], method: str) -> float:
    """Where between the two clearest modes of ``values`` (above 0, on a logarithmic scale) the fewest lie.

    Raises:
        UserError: there are no two modes with a valley between them.
    """
    logs = np.log10(values)
    low, high = np.percentile(logs, [25, 75]) if len(logs) else (0.0, 0.0)
    spread = float(min(logs.std(), (high - low) / 1.34) or logs.std()) if len(logs) else 0.0
    none = list[int](), np.empty(0), np.empty(0)
    modes, density, edge = _modes(logs, 0.9 * spread * len(logs) ** -0.2) if spread > 0 else none
    if len(modes) < 2:
        parts = [f"{q} % up to {np.percentile(values, q):,.1f}" for q in (1, 10, 50)] if len(logs) else []
        seen = ", ".join(parts) or "there are none"
        raise UserError(f"{method}: its numbers have no valley between two modes from which a threshold "
                        f"could be read ({seen}): set threshold.")
    lowest = modes[0] + int(np.argmin(density[modes[0]:modes[1]]))
    return float(10 ** ((edge[lowest] + edge[lowest + 1]) / 2))


def _modes(logs: NDArray[np.float64],
           width: float) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """Bins of the two clearest modes, in order; the density, and the edges of its bins."""
    from scipy.ndimage import gaussian_filter1d
    from scipy.signal import find_peaks
    count, edge = np.histogram(logs, BINS, (logs.min() - 3 * width, logs.max() + 3 * width))
    density = gaussian_filter1d(count.astype(float), width / (edge[1] - edge[0]), mode="constant")
    peaks, found = find_peaks(density, prominence=DEPTH * density.max())
    return sorted(peaks[np.argsort(-found["prominences"], kind="stable")[:2]].tolist()), density, edge
