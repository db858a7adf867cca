"""SparseGPT: the update of optimal brain surgery by hand and by direct inversion, and an
error below that of methods that only choose."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.compress.test_wanda import context
from trainwright.check import tiny
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.sparsegpt import Sparsegpt
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm import sparsity


def layer() -> tuple[Tensor, Tensor]:
    """A matrix [6, 16] and correlated inputs [200, 16], some of them far larger than others."""
    draw = torch.Generator().manual_seed(0)
    mix = torch.randn(16, 16, generator=draw) * torch.logspace(-1, 1, 16)
    return torch.randn(6, 16, generator=draw), torch.randn(200, 16, generator=draw) @ mix


def direct(w: np.ndarray, h: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """The columns one by one, with the inverse of what is left of H computed anew for each."""
    w = w.copy()
    for j in range(w.shape[1]):
        inverse = np.linalg.inv(h[j:, j:])
        error = np.where(kept[:, j], 0.0, w[:, j])
        w[:, j:] -= np.outer(error / inverse[0, 0], inverse[0])
    return w


def damped(x: Tensor, share: float = 0.01) -> np.ndarray:
    h = (x.T.double() @ x.double()).numpy()
    return np.asarray(h + share * np.diag(h).mean() * np.eye(len(h)))


def made_worse(w: Tensor, new: Tensor, x: Tensor) -> float:
    return float((x @ (w - new).T).square().sum())


def test_three_weights_by_hand() -> None:
    """H = [[2, 1, 0], [1, 2, 0], [0, 0, 1]]: without the first weight, the second, which sees half of its
    input, takes up half of it, and the third none."""
    gram = torch.tensor([[2.0, 1, 0], [1, 2, 0], [0, 0, 1]])
    w = torch.tensor([[0.2, 3.0, 3.0]])
    new, kept = Sparsegpt(sparsity=1 / 3, damping=1e-9).solve(w, gram, torch.ones(1, 3, dtype=torch.bool))
    assert kept.tolist() == [[False, True, True]]
    assert torch.allclose(new, torch.tensor([[0.0, 3.1, 3.0]]))


@pytest.mark.parametrize("pattern", ["", "2:4", "1:4"])
@pytest.mark.parametrize("block", [4, 6, 128])
def test_it_is_the_direct_solution(pattern: str, block: int) -> None:
    w, x = layer()
    method = Sparsegpt(sparsity=0.5, pattern=pattern, block=block)
    new, kept = method.solve(w, x.T @ x, torch.ones_like(w, dtype=torch.bool))
    expected = direct(w.double().numpy(), damped(x), kept.numpy())
    assert np.allclose(new.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert (new[~kept] == 0).all()
    if pattern:
        assert (kept.view(6, -1, 4).sum(-1) == int(pattern[0])).all()
    elif block != 6:                                  # 16 = 6 + 6 + 4: each block has its own half
        assert int(kept.sum()) == w.numel() // 2


def test_the_mask_is_that_of_the_lowest_scores() -> None:
    """With one block: W^2 over the diagonal of the inverse of what is left of H, by direct inversion."""
    w, x = layer()
    _, kept = Sparsegpt(sparsity=0.25).solve(w, x.T @ x, torch.ones_like(w, dtype=torch.bool))
    h = damped(x)
    diagonal = np.array([np.linalg.inv(h[j:, j:])[0, 0] for j in range(16)])
    scores = w.double().numpy() ** 2 / diagonal
    assert scores[~kept.numpy()].max() <= scores[kept.numpy()].min()
    assert int((~kept).sum()) == 24


@pytest.mark.parametrize("pattern", ["", "2:4"])
def test_the_output_changes_less_than_by_magnitude_and_by_wanda(pattern: str) -> None:
    w, x = layer()
    found, _ = Sparsegpt(pattern=pattern).solve(w, x.T @ x, torch.ones_like(w, dtype=torch.bool))
    magnitude = w * sparsity.keep(w.abs(), 0.5, pattern, rows=False)
    wanda = w * sparsity.keep(w.abs() * x.square().sum(0).sqrt(), 0.5, pattern, rows=True)
    assert made_worse(w, found, x) < made_worse(w, wanda, x) < made_worse(w, magnitude, x)


def test_what_was_removed_stays_removed(tmp_path: Path) -> None:
    model = tiny.model(tiny.GPT2).eval()
    model.config.use_cache = False
    before = {n: p.clone() for n, p in model.named_parameters()}
    Magnitude(sparsity=0.25).operate(model, Context())
    gone = {n: p == 0 for n, p in model.named_parameters() if n.endswith("c_fc.weight")}
    Sparsegpt(sparsity=0.5).operate(model, context(tmp_path, model))
    for name, p in model.named_parameters():
        if name in gone:
            assert (p[gone[name]] == 0).all() and int((p == 0).sum()) == p.numel() // 2
            assert not torch.equal(p[p != 0], before[name][p != 0]), "the others make up for it"


def test_few_tokens_and_no_data(tmp_path: Path) -> None:
    model = tiny.model().eval()
    ctx = context(tmp_path, model)
    Sparsegpt().operate(model, ctx)
    assert not ctx.texts
    few = context(tmp_path, model)
    batch = next(iter(few.batches()))                                                  # type: ignore[misc]
    few.batches = lambda: iter([{n: batch[n][:1, :5] for n in ("input_ids", "position_ids")}])
    Sparsegpt().operate(model, few)
    assert "saw fewer calibration tokens than they have inputs" in few.texts["sparsegpt"]
    with pytest.raises(UserError, match=r"sparsegpt looks at data: name a corpus as from\.data"):
        Sparsegpt().operate(model, Context())
