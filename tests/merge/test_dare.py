"""DARE: each entry is kept by chance, its expectation stays, and an election makes TIES of what is left."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge._drop import generators
from trainwright.merge.dare import Dare
from trainwright.merge.task_arithmetic import TaskArithmetic
from trainwright.merge.ties import Ties
from trainwright.stages.merge import combined

draw = torch.Generator().manual_seed(0)
BASE, *MODELS = (torch.randn(60, 50, generator=draw) for _ in range(3))


def drawn(shape: torch.Size, name: str, model: int, ctx: Context) -> torch.Tensor:
    return torch.rand(shape, generator=generators(name, 2, ctx)[model])


def merged(method: Dare, seed: int = 0) -> torch.Tensor:
    return combined("w", MODELS, BASE, [method], Context(seed=seed))


def test_what_is_kept_is_divided_by_the_density() -> None:
    move = (combined("w", MODELS[:1], BASE, [Dare(density=0.25)], Context()) - BASE).double()
    whole = (MODELS[0] - BASE).double()
    kept = move.abs() > 1e-6
    assert torch.allclose(move[kept], 4 * whole[kept], atol=1e-5)
    assert kept.double().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 3000) ** 0.5)


def test_the_expectation_is_task_arithmetic() -> None:
    mean = torch.stack([merged(Dare(density=0.5), seed).double() for seed in range(400)]).mean(0)
    wanted = combined("w", MODELS, BASE, [TaskArithmetic()], Context()).double()
    assert (mean - wanted).abs().mean() < 0.06          # the standard error of 400 draws is about 0.04
    assert (mean - wanted).mean().abs() < 4e-3


def test_each_model_tensor_and_seed_has_entries_of_its_own() -> None:
    shape, ctx = torch.Size((50, 40)), Context()
    first = drawn(shape, "w", 0, ctx)
    others = [drawn(shape, "w", 1, ctx), drawn(shape, "v", 0, ctx), drawn(shape, "w", 0, Context(seed=1))]
    for other in others:
        assert abs(torch.corrcoef(torch.stack([first.view(-1), other.view(-1)]))[0, 1]) < 0.1
    assert torch.equal(first, drawn(shape, "w", 0, Context(step=7)))


def test_an_election_against_the_equations() -> None:
    made = merged(Dare(density=0.6, elect=True, scale=0.5))
    kept = [(drawn(BASE.shape, "w", i, Context()) < 0.6).double().numpy() for i in range(2)]
    left = [k * (m - BASE).double().numpy() / 0.6 for k, m in zip(kept, MODELS, strict=True)]
    sign = np.sign(left[0] + left[1])
    agree = [(np.sign(v) == sign) & (v != 0) for v in left]
    mean = sum(v * a for v, a in zip(left, agree, strict=True)) / np.maximum(agree[0] * 1 + agree[1] * 1, 1)
    np.testing.assert_allclose(made.double().numpy(), BASE.double().numpy() + 0.5 * mean, atol=1e-6)


def test_limits() -> None:
    whole = combined("w", MODELS, BASE, [TaskArithmetic(weights=(1.0, 0.5))], Context())
    assert torch.allclose(merged(Dare(density=1.0, weights=(1.0, 0.5))), whole, atol=1e-6)
    ties = combined("w", MODELS, BASE, [Ties(density=1.0)], Context())
    assert torch.allclose(merged(Dare(density=1.0, elect=True)), ties, atol=1e-6)
    halves = merged(Dare(density=0.5)) - BASE, merged(Dare(density=0.5, rescale=False)) - BASE
    assert torch.allclose(halves[0], 2 * halves[1], atol=1e-5)


def test_mistakes() -> None:
    with pytest.raises(UserError, match="density must be above 0"):
        make(Dare, {"density": 1.5}, "merged")
    with pytest.raises(UserError, match="dare needs the model"):
        combined("w", MODELS, None, [Dare()], Context())
