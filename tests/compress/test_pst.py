"""PST: both terms of the gradient, the share that is removed, and a mask that goes with the model."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.compress.pst import PST, PSTLinear
from trainwright.core import masks
from trainwright.core.context import Context


def layer() -> PSTLinear:
    linear = nn.Linear(6, 4, bias=False)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(4, 6, generator=draw))
    made = PSTLinear(linear, PST(rank=2, score_rank=3), draw)
    with torch.no_grad():
        for p in (made.pst_V, made.pst_B, made.pst_R, made.pst_C):
            p.copy_(torch.randn(p.shape, generator=draw) * 0.3)
    made.removed.fill_(0.5)
    return made


def test_gradients_have_both_terms() -> None:
    made, given = layer(), torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    made.matrix().backward(given)
    with torch.no_grad():
        w = made.weight + made.pst_U @ made.pst_V
        scores = w.abs() + made.pst_A @ made.pst_B + made.pst_R + made.pst_C
        mask = scores > scores.flatten().sort().values[11]
        assert int(mask.sum()) == 12 and torch.allclose(made.matrix(), w * mask)
        to_scores = given * w
        to_w = given * mask + given * w * w.sign()
        expected = {"pst_U": to_w @ made.pst_V.T, "pst_V": made.pst_U.T @ to_w,
                    "pst_A": to_scores @ made.pst_B.T, "pst_B": made.pst_A.T @ to_scores,
                    "pst_R": to_scores.sum(1, keepdim=True), "pst_C": to_scores.sum(0, keepdim=True)}
    for name, grad in expected.items():
        assert torch.allclose(getattr(made, name).grad, grad, atol=1e-5), name


def test_the_share_grows_by_a_cube() -> None:
    method = PST(sparsity=0.8, warmup=0.1, hold=0.3)
    assert [method.share(t, 100) for t in (0, 10)] == [0, 0]
    assert method.share(40, 100) == pytest.approx(0.8 * (1 - 0.5**3))
    assert method.share(70, 100) == method.share(99, 100) == pytest.approx(0.8)
    with pytest.raises(ValueError, match="together they must be below 1"):
        PST(warmup=0.6, hold=0.4)


@pytest.mark.parametrize("net", [tiny.LLAMA, tiny.GPT2])
def test_the_mask_goes_with_the_model(net: str) -> None:
    model, method, ids = tiny.model(net), PST(sparsity=0.75, rank=2), torch.arange(24)[None]
    ctx = Context(step=9, steps=10, policy=model)
    method.operate(model, ctx)
    method.settle({}, {}, ctx)
    with torch.no_grad():
        before = model.eval()(ids).logits
        method.fold(model)
        assert torch.equal(model(ids).logits, before)
    held = masks.of(model)
    assert len(held) == (14 if net == tiny.LLAMA else 8)
    for name, mask in held.items():
        assert int(mask.sum()) == mask.numel() // 4
        assert (model.get_parameter(name)[~mask] == 0).all()
