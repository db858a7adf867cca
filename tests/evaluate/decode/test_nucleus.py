"""The nucleus by hand, and equality with transformers' own sampling."""
from __future__ import annotations

import pytest
import torch
from transformers import TopPLogitsWarper

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.evaluate.decode.nucleus import Nucleus

SEEN = torch.zeros(1, 1, dtype=torch.int64)


def left(p: float, *chances: float) -> list[int]:
    """The tokens that are left of these probabilities."""
    made = Nucleus(p=p).processor(torch.nn.Module(), Context())(SEEN, torch.tensor([chances]).log())
    return made[0].isfinite().nonzero().flatten().tolist()


def test_the_smallest_set_that_holds_p() -> None:
    assert left(0.6, 0.25, 0.5, 0.15, 0.1) == [0, 1], "0.5 is too little, 0.75 is enough"
    assert left(0.4, 0.25, 0.5, 0.15, 0.1) == [1], "the likeliest holds it alone"
    assert left(0.8, 0.25, 0.5, 0.15, 0.1) == [0, 1, 2]
    assert left(1.0, 0.25, 0.5, 0.15, 0.1) == [0, 1, 2, 3]
    assert left(0.6, 0.97, 0.01, 0.01, 0.01) == [0], "it shrinks where the model is sure"


def test_it_is_the_warper_of_transformers() -> None:
    scores = 3 * torch.randn(64, 300, generator=torch.Generator().manual_seed(0))
    seen = torch.zeros(64, 5, dtype=torch.int64)
    for p in (0.1, 0.5, 0.9, 1.0):
        ours = Nucleus(p=p).processor(tiny.model(), Context())(seen, scores.clone())
        assert torch.equal(ours, TopPLogitsWarper(p)(seen, scores.clone()))


@pytest.mark.parametrize("p", [0.0, 1.1, -1.0])
def test_a_p_that_cannot_be(p: float) -> None:
    with pytest.raises(UserError, match="p must be above 0 and at most 1"):
        make(Nucleus, {"p": p}, "here")
