"""L4Q: the gradients of learned steps by hand, a start at rounding, and an end on the grid."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.compress.l4q import L4q, L4qLinear
from trainwright.core.context import Context
from trainwright.core.errors import UserError


def layer(bits: int = 2, group: int = 4) -> L4qLinear:
    linear = nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    method = L4q(bits=bits, group_size=group, rank=2, alpha=4.0)
    return L4qLinear(linear, method, torch.Generator().manual_seed(1))


def test_it_starts_at_rounding_to_nearest() -> None:
    """s = max(|least| / 2^(b-1), largest / (2^(b-1) - 1)) of each group."""
    made = layer(bits=3)
    for row, steps in zip(made.weight.detach(), made.step.detach(), strict=True):
        for group, step in zip(row.split(4), steps, strict=True):
            assert float(step) == pytest.approx(max(-float(group.min()) / 4, float(group.max()) / 3))
    rounded = (made.weight.view(3, 2, 4) / made.step[..., None]).round().clamp(-4, 3) * made.step[..., None]
    assert torch.allclose(made.matrix(), rounded.flatten(1))


def test_gradients_are_those_of_the_paper() -> None:
    made = layer()
    with torch.no_grad():
        made.lora_B.normal_(generator=torch.Generator().manual_seed(2))
        made.step.mul_(0.6)                                    # some weights are out of the range now
        made.offset.fill_(0.1)
    given = torch.randn(3, 8, generator=torch.Generator().manual_seed(3))
    made.matrix().backward(given)
    with torch.no_grad():
        step, offset = (t.repeat_interleave(4, 1) for t in (made.step, made.offset))
        w = (made.weight + 2.0 * made.lora_B @ made.lora_A - offset) / step
        inside = (w >= -2) & (w <= 1)
        assert 0 < int(inside.sum()) < 24
        q = w.clamp(-2, 1).round()
        to_step = torch.where(inside, q - w, q) * given
        assert torch.allclose(made.step.grad, to_step.view(3, 2, 4).sum(-1), atol=1e-5)  # type: ignore[arg-type]
        to_offset = torch.where(inside, 0.0, given).view(3, 2, 4).sum(-1)
        assert torch.allclose(made.offset.grad, to_offset, atol=1e-5)                    # type: ignore[arg-type]
        passed = given * inside
        assert torch.allclose(made.lora_B.grad, 2.0 * passed @ made.lora_A.T, atol=1e-5)  # type: ignore[arg-type]
        assert torch.allclose(made.lora_A.grad, 2.0 * made.lora_B.T @ passed, atol=1e-5)  # type: ignore[arg-type]


def test_an_offset_of_weights_inside_the_range_has_no_gradient_at_all() -> None:
    """Not one of rounding errors, of which Adam would make whole steps."""
    made = layer()
    with torch.no_grad():
        made.step.mul_(1.1)                                    # the range holds all weights
    made.matrix().backward(torch.randn(3, 8, generator=torch.Generator().manual_seed(3)))
    assert not made.offset.grad.any() and made.step.grad.all()                           # type: ignore[union-attr]


@pytest.mark.parametrize("net", [tiny.LLAMA, tiny.GPT2])
def test_no_adapter_is_left_and_few_values_in_a_group(net: str) -> None:
    model, method = tiny.model(net), L4q(bits=2, group_size=8, rank=2)
    method.operate(model, Context())
    for one in method.mine(model).values():
        one.lora_B.data.fill_(0.01)
        one.offset.data.fill_(0.003)
    ids = torch.arange(24)[None]
    with torch.no_grad():
        before = model.eval()(ids).logits
        weight = next(iter(method.mine(model).values())).matrix()
        method.fold(model)
        assert torch.equal(model(ids).logits, before)
    assert all(len(group.unique()) <= 4 for group in weight.reshape(-1, 8))
    assert not any("lora" in n for n, _ in model.named_parameters())
    with pytest.raises(UserError, match="group_size = 7 does not divide the 16 inputs"):
        L4q(group_size=7).operate(tiny.model(net), Context())
