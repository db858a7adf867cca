"""The threshold by hand, and equality with transformers' own sampling."""
from __future__ import annotations

import pytest
import torch
from transformers import MinPLogitsWarper

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.evaluate.decode.min_p import MinP

SEEN = torch.zeros(1, 1, dtype=torch.int64)


def left(p: float, *chances: float) -> list[int]:
    """The tokens that are left of these probabilities."""
    made = MinP(p=p).processor(torch.nn.Module(), Context())(SEEN, torch.tensor([chances]).log())
    return made[0].isfinite().nonzero().flatten().tolist()


def test_the_threshold_follows_the_likeliest_token() -> None:
    assert left(0.25, 0.6, 0.16, 0.14, 0.1) == [0, 1], "0.15 is asked for"
    assert left(0.25, 0.28, 0.26, 0.24, 0.22) == [0, 1, 2, 3], "where the model is unsure, 0.07 is enough"
    assert left(1.0, 0.6, 0.16, 0.14, 0.1) == [0] and left(0.0, 0.6, 0.16, 0.14, 0.1) == [0, 1, 2, 3]


def test_it_is_the_warper_of_transformers() -> None:
    scores = 3 * torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(64, 5, dtype=torch.int64)
    for p in (0.0, 0.05, 0.3, 1.0):
        ours = MinP(p=p).processor(tiny.model(), Context())(seen, scores.clone())
        assert torch.equal(ours, MinPLogitsWarper(p)(seen, scores.clone()))


@pytest.mark.parametrize("p", [1.1, -0.1])
def test_a_p_that_cannot_be(p: float) -> None:
    with pytest.raises(UserError, match="p must be from 0 to 1"):
        make(MinP, {"p": p}, "here")
