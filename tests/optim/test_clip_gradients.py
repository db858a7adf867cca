"""ClipGradients: the global norm and what it does to the gradients."""

from __future__ import annotations

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.optim.clip_gradients import ClipGradients


def test_a_long_gradient_is_scaled_to_the_norm() -> None:
    """(3, 0) and (0, 4) have the norm 5 together; clipped to 1 they are 0.6 and 0.8 long."""
    ctx = Context()
    out = ClipGradients(norm=1.0).update(
        {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([[0.0], [4.0]])}, {}, {}, ctx
    )
    torch.testing.assert_close(out["a"], torch.tensor([0.6, 0.0]), rtol=1e-6, atol=0)
    torch.testing.assert_close(out["b"], torch.tensor([[0.0], [0.8]]), rtol=1e-6, atol=0)
    ((norm, weight),) = ctx.notes["grad_norm"]
    assert (float(norm), weight) == (5.0, 1.0)


def test_a_short_gradient_is_left_alone() -> None:
    g = {"a": torch.tensor([3.0, 4.0])}
    assert torch.equal(
        ClipGradients(norm=5.1).update(dict(g), {}, {}, Context())["a"], torch.tensor([3.0, 4.0])
    )


def test_equal_to_torch() -> None:
    rng = torch.Generator().manual_seed(0)
    grads = {str(i): torch.randn(5, i + 1, generator=rng) for i in range(6)}
    params = [torch.nn.Parameter(torch.zeros_like(g)) for g in grads.values()]
    for p, g in zip(params, grads.values(), strict=True):
        p.grad = g.clone()
    torch.nn.utils.clip_grad_norm_(params, 0.7)
    out = ClipGradients(norm=0.7).update(grads, {}, {}, Context())
    assert all(torch.equal(out[n], p.grad) for n, p in zip(grads, params, strict=True) if p.grad is not None)


def test_gradients_that_others_read_stay_as_they_came() -> None:
    g = torch.tensor([3.0, 4.0])
    out = ClipGradients().update({"a": g}, {}, {}, Context(grads={"a": g}))
    assert torch.equal(g, torch.tensor([3.0, 4.0])) and out["a"] is not g


def test_gradients_that_nobody_reads_are_overwritten() -> None:
    """A second copy of all gradients costs more than the clip itself."""
    g = torch.tensor([3.0, 4.0])
    assert ClipGradients().update({"a": g}, {}, {}, Context())["a"] is g


def test_nothing_to_clip() -> None:
    ctx = Context()
    assert ClipGradients().update({}, {}, {}, ctx) == {} and not ctx.notes


def test_a_norm_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match="norm must be above 0"):
        make(ClipGradients, {"norm": 0}, "here")
