"""DELLA: chances follow the ranks of magnitudes in a row, and expectations stay."""

from __future__ import annotations

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge.dare import Dare
from trainwright.merge.della import Della
from trainwright.stages.merge import combined

draw = torch.Generator().manual_seed(0)
BASE, *MODELS = (torch.randn(40, 30, generator=draw) for _ in range(3))


def test_chances_by_hand() -> None:
    rows = torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.5, -0.1]])
    wanted = torch.tensor([[0.4, 0.8, 0.6], [0.4, 0.8, 0.6]])
    assert torch.allclose(Della(density=0.6, window=0.4).chances(rows), wanted)
    assert torch.allclose(Della(density=0.6, window=0.4).chances(torch.ones(2, 1)), torch.full((2, 1), 0.6))


def test_the_share_that_is_kept_and_the_expectation() -> None:
    method = Della(density=0.5, window=0.6, elect=False)
    made = [
        (combined("w", MODELS[:1], BASE, [method], Context(seed=s)) - BASE).double() for s in range(400)
    ]
    whole = (MODELS[0] - BASE).double()
    kept = torch.stack([(m.abs() > 1e-7).double() for m in made]).mean(0)
    assert torch.allclose(kept, method.chances(MODELS[0] - BASE).double(), atol=0.12)   # 5 standard errors
    assert kept.mean().item() == pytest.approx(0.5, abs=0.01)
    largest = whole.abs() >= whole.abs().median()
    assert kept[largest].mean() > kept[~largest].mean() + 0.2
    assert (torch.stack(made).mean(0) - whole).abs().mean() < 0.1


def test_without_a_window_it_is_dare_with_an_election() -> None:
    for elect in (True, False):
        made = combined("w", MODELS, BASE, [Della(density=0.5, window=0.0, elect=elect)], Context(seed=2))
        same = combined("w", MODELS, BASE, [Dare(density=0.5, elect=elect)], Context(seed=2))
        assert torch.allclose(made, same, atol=1e-6)


def test_every_shape() -> None:
    for shape in ((), (5,), (0, 3), (2, 3, 4)):
        t = torch.ones(shape)
        assert combined("w", [2 * t, 3 * t], t, [Della()], Context()).shape == t.shape


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"make chances from -0\.1 to 0\.7"):
        make(Della, {"density": 0.3, "window": 0.8}, "merged")
    with pytest.raises(UserError, match="della needs the model"):
        combined("w", MODELS, None, [Della()], Context())
