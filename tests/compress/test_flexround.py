"""FlexRound: the rule of its gradient, weights on the grid of the step, and blocks nearer to whole ones."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.compress.flexround import FlexLinear, Flexround
from trainwright.compress.magnitude import Magnitude
from trainwright.compress.round_nearest import RoundNearest
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.families import packed
from trainwright.lm.layers import as_linear_weight


def layer(symmetric: bool = True) -> FlexLinear:
    linear = nn.Linear(8, 3, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)))
    return FlexLinear(linear, Flexround(bits=3, symmetric=symmetric, group_size=4))


@pytest.mark.parametrize("symmetric", [True, False])
def test_it_starts_at_rounding_and_divides_without_multiplying_back(symmetric: bool) -> None:
    made = layer(symmetric)
    with torch.no_grad():
        away = (made.matrix() - made.weight).abs()                 # of two values as near either will do
        assert (away <= (made.start.nearest(made.weight) - made.weight).abs() + 1e-5).all()
        made.log_each.copy_(torch.randn(3, 8, generator=torch.Generator().manual_seed(1)))
        made.log_row.fill_(0.2)
        made.log_step.add_(0.1)
        grid, found = made.grid(), made.matrix()
        assert torch.allclose(grid.nearest(found), found, atol=1e-5), "on the grid of s alone"
        shrunk = made.weight / (made.log_each + made.log_row).exp()
        assert torch.allclose(found, grid.nearest(shrunk), atol=1e-5)


def test_large_weights_move_further() -> None:
    """dW'/d log S = -W / S inside the range, whatever the step."""
    made = layer()
    with torch.no_grad():
        made.log_each.fill_(0.3)
    made.matrix().sum().backward()
    with torch.no_grad():
        places = made.weight / (made.log_each.exp() * made.start.scale.repeat_interleave(4, 1))
        inside = (places.round() >= -4) & (places.round() <= 3)
        expected = torch.where(inside, -made.weight / made.log_each.exp(), 0.0)
    assert torch.allclose(made.log_each.grad, expected, atol=1e-5)                       # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("net", [tiny.LLAMA, tiny.GPT2])
def test_blocks_come_nearer_to_what_they_were(net: str) -> None:
    whole, rounded, model = tiny.model(net).eval(), tiny.model(net).eval(), tiny.model(net).eval()
    for one in (whole, rounded, model):
        one.config.use_cache = False                                                     # type: ignore[union-attr]
        Magnitude(pattern="2:4").operate(one, Context())
    ids = torch.arange(96).view(4, 24)
    data = {"input_ids": ids, "position_ids": torch.arange(24).expand(4, 24)}
    ctx = Context(batches=lambda: iter([data]), policy=model)
    RoundNearest(bits=2).operate(rounded, ctx)
    Flexround(bits=2, steps=25, lr=0.03).operate(model, ctx)
    with torch.no_grad():
        hidden = [one(ids, output_hidden_states=True).hidden_states[-1] for one in (whole, rounded, model)]
    far = [float((h - hidden[0]).square().mean()) for h in hidden[1:]]
    assert far[1] < 0.8 * far[0]
    assert "by rounding to nearest" in ctx.texts["flexround/blocks"] and "flexround" not in ctx.texts
    held: dict[str, packed.Grids] = model.__dict__[packed.KEPT]
    for name, grids in held.items():
        weight = as_linear_weight(model.get_submodule(name)).detach()
        assert torch.allclose(packed._values(weight, grids), weight, atol=1e-6)
        assert (weight[as_linear_weight(whole.get_submodule(name)) == 0] == 0).all()
    assert len(held) == (14 if net == tiny.LLAMA else 8)


def test_few_tokens_and_no_data() -> None:
    model = tiny.model().eval()
    model.config.use_cache = False                                                       # type: ignore[union-attr]
    few = {"input_ids": torch.arange(5)[None], "position_ids": torch.arange(5)[None]}
    ctx = Context(batches=lambda: iter([few]), policy=model)
    Flexround(steps=1).operate(model, ctx)
    assert "saw fewer calibration tokens than they have inputs" in ctx.texts["flexround"]
    with pytest.raises(UserError, match=r"flexround looks at data: name a corpus as from\.data"):
        Flexround().operate(tiny.model(), Context())
