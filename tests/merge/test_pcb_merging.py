"""PCB-Merging against its equations, written out again in NumPy over whole models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.merge.checkpoints import context, flat, merge, tuned
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.interpolate import Interpolate
from trainwright.merge.pcb_merging import PcbMerging
from trainwright.stages.merge import combined


def norm(x: np.ndarray) -> np.ndarray:
    return (x - x.min()) / (x.max() - x.min())


def reference(tau: np.ndarray, density: float, clip: float) -> np.ndarray:
    """The merged task vector of tau [N, d], in float64, with a softmax as in the paper's text."""
    n, d = tau.shape
    ordered = np.sort(np.abs(tau), axis=1)
    low, high = ordered[:, int(d * clip)], ordered[:, int(d * (1 - clip) - 1)]
    tau = np.sign(tau) * np.clip(np.abs(tau), low[:, None], high[:, None])
    weights = []
    for row in tau:
        e = np.exp(n * norm(np.abs(row)) ** 2)
        score = e / e.sum() * np.tanh(row * tau.sum(0))
        cut = np.sort(score)[int(d * (1 - density))]
        weights.append(norm(np.maximum(score, cut)))
    beta = np.array(weights)
    return (beta * tau).sum(0) / np.maximum(beta.sum(0), 1e-12)


@pytest.mark.parametrize("models", [2, 4])
@pytest.mark.parametrize(("density", "clip"), [(0.1, 1e-4), (0.05, 0.01), (0.9, 0.0)])
def test_against_the_equations(models: int, density: float, clip: float, tmp_path: Path) -> None:
    trained, base = tuned(models)
    made = merge(PcbMerging(density=density, clip=clip), context(tmp_path, trained, base))
    tau = np.array([(flat(m) - flat(base)).double().numpy() for m in trained])
    wanted = flat(base).double().numpy() + 1.2 * reference(tau, density, clip)
    near = np.isclose(flat(made).double().numpy(), wanted, atol=1e-5)
    # float32 may put an entry at the border on the other side, where its weight, and so its mean, jumps
    assert near.mean() > 0.998


def test_what_is_kept_by_one_task_is_that_tasks_own(tmp_path: Path) -> None:
    """A weighted mean, not a sum: where a single task keeps an entry, the whole of its change arrives."""
    trained, base = tuned(2)
    made = merge(PcbMerging(density=0.1, clip=0.0, scale=1.0), context(tmp_path, trained, base))
    move = flat(made) - flat(base)
    vectors = torch.stack([flat(m) - flat(base) for m in trained])
    moved = move.abs() > 1e-4
    assert 0.05 < moved.float().mean() < 0.2
    low, high = vectors.min(0).values, vectors.max(0).values
    assert (move[moved] >= low[moved] - 1e-5).all() and (move[moved] <= high[moved] + 1e-5).all()
    assert torch.isclose(move[moved][:, None], vectors.T[moved], atol=1e-5).any(1).float().mean() > 0.3


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"clip = 0\.5"):
        make(PcbMerging, {"clip": 0.5}, "merged")
    models, base = tuned(2)
    ctx = context(tmp_path, models, base)
    for method in (chain := [Interpolate(), PcbMerging()]):
        method.prepare(ctx)
    with pytest.raises(UserError, match=r"pcb_merging looks at the models themselves.*name it first"):
        combined("norm", [m["norm"] for m in models], base["norm"], chain, ctx)
