"""The chain of updates: order, globs, absorption, and steps taken in place."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from trainwright.core.chain import Chain
from trainwright.core.claims import match, name_all
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Optimizer, State, Tensors, Update
from trainwright.optim.adamw import Adamw
from trainwright.optim.clip_gradients import ClipGradients
from trainwright.optim.weight_decay import WeightDecay


class Scale(Update):
    """Multiplies."""

    by: float = 2.0
    """Factor."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return {n: u * self.by for n, u in updates.items()}


class Add(Update):
    """Adds."""

    what: float = 1.0
    """Summand."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return {n: u + self.what for n, u in updates.items()}


class Plain(Optimizer):
    """Gradient descent."""


def step(*methods: Update, lr: float = 1.0, grad: float = 1.0) -> dict[str, float]:
    params = {n: torch.zeros(1) for n in ("a.weight", "b.weight", "b.bias")}
    ctx = Context(knobs={"lr": lr})
    named = name_all(methods)
    with torch.no_grad():
        Chain(named).step({n: torch.full((1,), grad) for n in params}, params, {k: {} for k, _ in named}, ctx)  # type: ignore[misc]
    return {n: float(p) for n, p in params.items()}


def test_recipe_order_is_the_order() -> None:
    assert step(Scale(), Add(), Plain(lr=1.0))["a.weight"] == -3.0
    assert step(Add(), Scale(), Plain(lr=1.0))["a.weight"] == -4.0
    assert step(Plain(lr=0.5), Scale(by=3.0))["a.weight"] == -1.5, (
        "what stands behind the optimizer changes its step"
    )
    assert step(Plain(lr=0.5), lr=0.1)["a.weight"] == -0.05000000074505806


def test_globs_limit_an_update() -> None:
    moved = step(
        Scale(params="b.*", by=5.0), Plain(lr=1.0, params="*.weight"), Plain(lr=0.1, params="!*.weight")
    )
    assert moved == {"a.weight": -1.0, "b.weight": -5.0, "b.bias": -0.5}
    assert match("!b.*", ["a", "b.x"]) == ["a"] and match("*", ["a", "b"]) == ["a", "b"]


def test_the_usual_chain_is_one_fused_step() -> None:
    chain = Chain(name_all([ClipGradients(), Adamw(weight_decay=0.0), WeightDecay(rate=0.2)]))  # type: ignore[arg-type]
    assert [m for _, m in chain.links] == [ClipGradients(), Adamw(weight_decay=0.2)]
    assert not chain.followed(1, ["a"]) and chain.followed(0, ["a"])


def test_an_update_that_only_settles_is_no_link() -> None:
    class Hold(Update):
        """Does nothing but settle."""

        def settle(self, params: Tensors, state: State, ctx: Context) -> None:
            pass

    assert [m.name for _, m in Chain(name_all([Hold(), Plain()])).links] == ["plain"]  # type: ignore[arg-type]


def test_names_do_not_move_when_another_method_comes() -> None:
    assert [k for k, _ in name_all([Scale(), Add(), Scale()])] == ["scale.1", "add.1", "scale.2"]


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    model = nn.Linear(2, 2)
    before, grads = model.bias.detach().clone(), {"weight": torch.ones(2, 2)}
    params, ctx = dict(model.named_parameters()), Context(knobs={"lr": 1.0})
    with torch.no_grad():
        Chain([("plain.1", Plain(lr=1.0))]).step(grads, params, {"plain.1": {}}, ctx)  # type: ignore[arg-type]
    assert torch.equal(model.bias, before)


class Odd(Update):
    """Returns what it should not."""

    how: str = ""
    """What is wrong."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        if self.how == "shape":
            return {n: u.new_ones(3, 1) for n, u in updates.items()}
        return updates | {"nobody": torch.zeros(1)}


class Lacking(Optimizer):
    """Leaves the step of one parameter to nobody."""

    def update(self, updates: Tensors, params: Tensors, state: State, ctx: Context) -> Tensors:
        return {n: u for n, u in updates.items() if n != "b.bias"}


def test_updates_that_would_be_broadcast_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"^odd.1 returns an update of a.weight of the shape \(3, 1\), not \(1,\)\.$"
    ):
        step(Odd(how="shape"), Plain(lr=1.0))
    with pytest.raises(UserError, match=r"odd.1 returns an update of nobody, which it was not given"):
        step(Odd(how="name"), Plain(lr=1.0))
    with pytest.raises(UserError, match=r"lacking.1 returns no update of b.bias, whose step it owns"):
        step(Lacking(lr=1.0), Scale())
