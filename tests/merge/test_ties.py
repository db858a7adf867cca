"""TIES against the paper's three steps, written out again in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.merge.checkpoints import SHAPES, context, flat, merge, tuned
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.interpolate import Interpolate
from trainwright.merge.ties import Ties
from trainwright.stages.merge import combined


def reference(vectors: list[np.ndarray], density: float, weights: list[float]) -> np.ndarray:
    """Trim, elect, merge, in float64."""
    trimmed = []
    for v in vectors:
        kept = np.argsort(-np.abs(v), kind="stable")[:int(density * len(v))]
        trimmed.append(np.zeros_like(v))
        trimmed[-1][kept] = v[kept]
    sign = np.sign(sum(w * t for w, t in zip(weights, trimmed, strict=True)))
    total, share = np.zeros_like(vectors[0]), np.zeros_like(vectors[0])
    for w, t in zip(weights, trimmed, strict=True):
        agrees = (np.sign(t) == sign) & (t != 0)
        total += w * t * agrees
        share += w * agrees
    return np.divide(total, share, out=np.zeros_like(total), where=share > 0)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("weights", [(), (0.5, 2.0, 1.0)])
def test_over_the_whole_model(density: float, weights: tuple[float, ...], tmp_path: Path) -> None:
    models, base = tuned(3)
    made = merge(Ties(density=density, weights=weights, scale=0.7), context(tmp_path, models, base))
    vectors = [(flat(m) - flat(base)).double().numpy() for m in models]
    wanted = flat(base).double().numpy() + 0.7 * reference(vectors, density, list(weights) or [1 / 3] * 3)
    np.testing.assert_allclose(flat(made).double().numpy(), wanted, atol=2e-7)


def test_over_each_tensor(tmp_path: Path) -> None:
    models, base = tuned(2)
    made = merge(Ties(density=0.3, over="tensor"), context(tmp_path, models, base))
    for name in SHAPES:
        vectors = [(m[name] - base[name]).reshape(-1).double().numpy() for m in models]
        wanted = base[name].reshape(-1).double().numpy() + reference(vectors, 0.3, [0.5, 0.5])
        np.testing.assert_allclose(made[name].reshape(-1).double().numpy(), wanted, atol=2e-7)
        alone = combined(name, [m[name] for m in models], base[name], [Ties(density=0.3)], Context())
        assert torch.equal(alone, made[name])


def test_by_hand() -> None:
    """The figure of the paper: a redundant value is trimmed, a sign is outvoted, who agrees is averaged."""
    base = torch.ones(4)
    one, two = torch.tensor([3.0, 0.1, -2.0, 4.0]), torch.tensor([1.0, -2.0, -4.0, -6.0])
    out = combined("w", [base + one, base + two], base, [Ties(density=0.75)], Context())
    assert torch.allclose(out - base, torch.tensor([3.0, -2.0, -3.0, -6.0]))
    even = combined("w", [base + 2, base - 2], base, [Ties(density=1.0)], Context())
    assert torch.equal(even, base + 2)                                    # an exact tie of signs is a plus


def test_those_who_agree_can_be_added_up() -> None:
    base = torch.zeros(3)
    one, two = torch.tensor([1.0, 2.0, -1.0]), torch.tensor([3.0, -1.0, 4.0])
    out = combined("w", [one, two], base, [Ties(density=1.0, add_up=True, scale=0.5)], Context())
    assert torch.allclose(out, torch.tensor([2.0, 1.0, 2.0]))
    out = combined("w", [one, two], base, [Ties(density=1.0, add_up=True, weights=(1.0, 3.0))], Context())
    assert torch.allclose(out, torch.tensor([10.0, -3.0, 12.0]))


def test_of_one_model_the_largest_stay() -> None:
    base = torch.zeros(4)
    out = combined("w", [torch.tensor([4.0, -3.0, 2.0, 1.0])], base, [Ties(density=0.5)], Context())
    assert torch.equal(out, torch.tensor([4.0, -3.0, 0.0, 0.0]))


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="density must be above 0"):
        make(Ties, {"density": 0.0}, "merged")
    models, base = tuned(2)
    ctx = context(tmp_path, models, base)
    for method in (chain := [Interpolate(), Ties()]):
        method.prepare(ctx)
    with pytest.raises(UserError, match=r"ties looks at the models themselves.*name it first"):
        combined("norm", [m["norm"] for m in models], base["norm"], chain, ctx)
    with pytest.raises(UserError, match="ties needs the model"):
        combined("norm", [m["norm"] for m in models], None, [Ties()], Context())
