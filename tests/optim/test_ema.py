"""The average of the weights: its formula, and that training does not feel it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State
from trainwright.core.settings import make
from trainwright.optim.ema import Ema


def run(method: Ema, values: list[float], dtype: torch.dtype = torch.float32) -> tuple[nn.Linear, State]:
    """A weight that takes each value in turn, as the loop would tell: once before the first step, then after
    each."""
    model = nn.Linear(1, 1, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.fill_(values[0])
        state = method.init(model, Context())
        method.settle(dict(model.named_parameters()), state, Context(step=0))
        for t, value in enumerate(values[1:]):
            model.weight.fill_(value)
            method.settle(dict(model.named_parameters()), state, Context(step=t))
    return model, state


def mean(model: nn.Linear, method: Ema, state: State) -> Tensor:
    return method.view(dict(model.named_parameters()), state)["weight"]


def test_the_formula_by_hand() -> None:
    method = Ema(decay=0.5, warmup=False)
    model, state = run(method, [8.0, 4.0, 2.0])
    assert float(mean(model, method, state)) == 0.5 * (0.5 * 8 + 0.5 * 4) + 0.5 * 2
    assert model.weight.item() == 2.0


def test_the_first_steps_look_back_less_far() -> None:
    """d is 1/10 after the first step and 2/11 after the second, as long as that is below ``decay``."""
    method = Ema(decay=0.999)
    model, state = run(method, [8.0, 4.0, 2.0])
    expected = 2 / 11 * (0.1 * 8 + 0.9 * 4) + 9 / 11 * 2
    torch.testing.assert_close(mean(model, method, state), torch.tensor([[expected]]))
    model, state = run(Ema(decay=0.05), [8.0, 4.0])
    torch.testing.assert_close(state["param"]["weight"]["mean"], torch.tensor([[0.05 * 8 + 0.95 * 4]]))


def test_bfloat16_weights_are_averaged_in_float32() -> None:
    """One thousandth of the way from 1 to 2 is lost in bfloat16, whose numbers above 1 are 1/128 apart."""
    method = Ema(decay=0.999, warmup=False)
    model, state = run(method, [1.0, 2.0], torch.bfloat16)
    torch.testing.assert_close(mean(model, method, state), torch.tensor([[1.001]]))
    assert model.weight.dtype == torch.bfloat16


def test_only_what_trains_and_matches() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].bias.requires_grad_(False)
    assert set(Ema().init(model, Context())["param"]) == {"0.weight", "1.weight", "1.bias"}
    state = Ema(params="nothing.*").init(model, Context())
    Ema(params="nothing.*").settle(dict(model.named_parameters()), state, Context())
    assert state["param"] == {}


def test_updates_pass_untouched() -> None:
    assert Ema.update is Ema.__mro__[1].update, "an override would keep the fused kernel from running"
    updates = {"w": torch.ones(2)}
    assert Ema().update(updates, {}, {}, Context()) is updates


def test_a_decay_of_one_is_refused() -> None:
    with pytest.raises(UserError, match="decay must be"):
        make(Ema, {"decay": 1.0}, "here")
