"""Magnitude pruning: the smallest weights of each group are gone, and nothing else has changed."""
from __future__ import annotations

import pytest
import torch

from trainwright.check import tiny
from trainwright.compress.magnitude import Magnitude
from trainwright.core.context import Context
from trainwright.lm.layers import as_linear_weight, linear_layers


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.9])
def test_what_is_left_is_larger_than_what_is_gone(kind: str, share: float) -> None:
    model, before = tiny.model(kind), tiny.model(kind)
    Magnitude(sparsity=share).operate(model, Context())
    for name, layer in linear_layers(before, "all-linear").items():
        was, now = as_linear_weight(layer), as_linear_weight(model.get_submodule(name))
        gone = now == 0
        assert int(gone.sum()) == round(share * was.numel())
        assert was[gone].abs().max() <= was[~gone].abs().min()
        assert torch.equal(now[~gone], was[~gone])


def test_rows_and_patterns() -> None:
    model = tiny.model()
    Magnitude(sparsity=0.25, group="row", layers="*.q_proj").operate(model, Context())
    assert all((w == 0).sum(1).eq(4).all() for n, w in model.named_parameters() if "q_proj" in n)
    Magnitude(pattern="2:4", layers="*.up_proj").operate(model, Context())
    for w in (w for n, w in model.named_parameters() if "up_proj" in n):
        assert (w.view(-1, 4) == 0).sum(1).eq(2).all()


def test_embeddings_head_norms_stay() -> None:
    model, before = tiny.model(), dict(tiny.model().named_parameters())
    Magnitude().operate(model, Context())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if "proj" not in n)
