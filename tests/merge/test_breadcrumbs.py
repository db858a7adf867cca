"""Breadcrumbs: what lies between two ranks of magnitude is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.breadcrumbs import Breadcrumbs
from trainwright.merge.task_arithmetic import TaskArithmetic
from trainwright.stages.merge import combined

draw = torch.Generator().manual_seed(0)
BASE, *MODELS = (torch.randn(40, 30, generator=draw) for _ in range(3))


@pytest.mark.parametrize(("density", "outliers"), [(0.14, 0.01), (0.5, 0.1), (0.9, 0.1), (0.3, 0.0)])
def test_against_sorting(density: float, outliers: float) -> None:
    method = Breadcrumbs(density=density, outliers=outliers, scale=0.3, weights=(1.0, 1.0))
    made = combined("w", MODELS, BASE, [method], Context())
    wanted = BASE.double().numpy().reshape(-1)
    for model in MODELS:
        v = (model - BASE).double().numpy().reshape(-1)
        order = np.argsort(-np.abs(v))
        kept = order[int(outliers * len(v)):][:int(density * len(v))]
        mask = np.zeros_like(v)
        mask[kept] = 1
        wanted = wanted + 0.3 * mask * v
    np.testing.assert_allclose(made.double().numpy().reshape(-1), wanted, atol=1e-6)


def test_by_hand() -> None:
    v = torch.tensor([9.0, -4.0, 3.0, 2.0, -1.0])
    made = combined("w", [v], torch.zeros(5), [Breadcrumbs(density=0.4, outliers=0.2)], Context())
    assert torch.equal(made, torch.tensor([0.0, -4.0, 3.0, 0.0, 0.0]))
    few = combined("w", [v], torch.zeros(5), [Breadcrumbs(density=0.1, outliers=0.0)], Context())
    assert not few.any()


def test_equal_magnitudes_are_kept_together() -> None:
    """Where outliers and what is kept have one magnitude, nothing of it is lost."""
    v = torch.tensor([1.0, 1.0, -1.0, 0.5])
    made = combined("w", [v], torch.zeros(4), [Breadcrumbs(density=0.25, outliers=0.25)], Context())
    assert torch.equal(made, torch.tensor([1.0, 1.0, -1.0, 0.0]))


def test_all_of_it_is_task_arithmetic() -> None:
    made = combined("w", MODELS, BASE, [Breadcrumbs(density=1.0, outliers=0.0)], Context())
    assert torch.allclose(made, combined("w", MODELS, BASE, [TaskArithmetic()], Context()), atol=1e-6)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="must be shares that make at most 1"):
        make(Breadcrumbs, {"density": 0.9, "outliers": 0.2}, "merged")
    with pytest.raises(UserError, match="breadcrumbs needs the model"):
        combined("w", MODELS, None, [Breadcrumbs()], Context())
