"""AdamW: the fused step, the step by formula and PyTorch's own are one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors
from trainwright.core.settings import make
from trainwright.optim.adamw import Adamw
from trainwright.optim.weight_decay import WeightDecay

SHAPES = {"a.weight": (7, 5), "a.bias": (7,), "b.weight": (3, 4, 2), "norm.weight": (5,)}
STEPS = 20


def weights(dtype: torch.dtype = torch.float64) -> Tensors:
    rng = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=rng, dtype=dtype) for n, s in SHAPES.items()}


def gradients(t: int, dtype: torch.dtype = torch.float64) -> Tensors:
    rng = torch.Generator().manual_seed(100 + t)
    return {n: torch.randn(s, generator=rng, dtype=dtype) for n, s in SHAPES.items()}


def rate(t: int, method: Adamw) -> float:
    return method.lr * (1 - t / STEPS)


@torch.no_grad()
def fused(method: Adamw, dtype: torch.dtype = torch.float64) -> tuple[Tensors, State]:
    params, state = weights(dtype), {}
    for t in range(STEPS):
        method.apply(gradients(t, dtype), params, state, Context(step=t), rate(t, method))
    return params, state


@torch.no_grad()
def unfused(method: Adamw, dtype: torch.dtype = torch.float64) -> tuple[Tensors, State]:
    params, state = weights(dtype), {}
    for t in range(STEPS):
        for n, u in method.update(gradients(t, dtype), params, state, Context(step=t)).items():
            params[n].sub_(u, alpha=rate(t, method))
    return params, state


def torchs(method: Adamw) -> Tensors:
    params = {n: p.requires_grad_() for n, p in weights().items()}
    flat = [p for p in params.values() if p.ndim < 2]
    rest = [p for p in params.values() if p.ndim >= 2]
    groups = [
        {"params": rest},
        {"params": flat, "weight_decay": method.weight_decay if method.decay_1d else 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=method.lr,
        betas=(method.beta1, method.beta2),
        eps=method.eps,
        weight_decay=method.weight_decay,
    )
    for t in range(STEPS):
        for n, g in gradients(t).items():
            params[n].grad = g
        for group in optimizer.param_groups:
            group["lr"] = rate(t, method)
        optimizer.step()
    return {n: p.detach() for n, p in params.items()}


@pytest.mark.parametrize(
    "method",
    [
        Adamw(lr=0.05),
        Adamw(lr=0.05, decay_1d=True, beta2=0.999, weight_decay=0.5),
        Adamw(lr=0.05, weight_decay=0.0, beta1=0.0),
    ],
    ids=["default", "decay_1d", "no_decay"],
)
def test_fused_is_the_formula_is_torch(method: Adamw) -> None:
    """The formula takes its bias corrections from a float32 step count, hence 1e-6 and not 1e-12."""
    (by_kernel, kept), (by_formula, kept_too) = fused(method), unfused(method)
    assert_close(by_kernel, torchs(method), rtol=1e-12, atol=1e-12)
    assert_close(by_kernel, by_formula, rtol=1e-6, atol=1e-6)
    for n in SHAPES:
        assert_close(kept["param"][n], kept_too["param"][n], rtol=1e-12, atol=1e-12)


def test_fused_is_the_formula_in_float32() -> None:
    assert_close(
        fused(Adamw(lr=0.05), torch.float32)[0],
        unfused(Adamw(lr=0.05), torch.float32)[0],
        rtol=2e-6,
        atol=2e-6,
    )


def test_the_first_step_by_hand() -> None:
    """At t = 1 the bias corrections undo the averages: u = g / (|g| + eps) + weight_decay p."""
    p, g = torch.tensor([[2.0, -4.0]]), torch.tensor([[0.5, -3.0]])
    u = Adamw(weight_decay=0.1, eps=0.5).update({"w": g}, {"w": p}, {}, Context())["w"]
    assert_close(u, torch.tensor([[0.5 / 1.0 + 0.2, -3.0 / 3.5 - 0.4]]))


def test_parameters_age_one_by_one() -> None:
    """A parameter that gets its first gradient late takes the step of a fresh one."""
    method, state, p = Adamw(weight_decay=0.0, lr=1.0), {}, {"a": torch.zeros(2), "b": torch.zeros(2)}
    for t in range(5):
        method.apply({"a": torch.ones(2)}, p, state, Context(step=t), 1.0)
    method.apply({n: torch.ones(2) for n in p}, p, state, Context(step=5), 1.0)
    assert [float(state["param"][n]["step"]) for n in p] == [6.0, 1.0]
    assert_close(p["b"], -torch.ones(2))


def test_a_transposed_gradient_is_read_right() -> None:
    def stepped(g: Tensor) -> Tensor:
        p = {"w": torch.zeros(3, 5)}
        Adamw(weight_decay=0.0, eps=1.0).apply({"w": g}, p, {}, Context(), 1.0)
        return p["w"]

    g = torch.arange(15.0).reshape(5, 3).t()
    assert torch.equal(stepped(g), stepped(g.contiguous()))


def test_it_takes_in_weight_decay() -> None:
    decay = WeightDecay(rate=0.3, decay_1d=True)
    merged = Adamw(lr=0.05, weight_decay=0.0).absorb(decay)
    assert merged == Adamw(lr=0.05, weight_decay=0.3, decay_1d=True)
    params, state = weights(), {}
    for t in range(STEPS):
        updates = Adamw(lr=0.05, weight_decay=0.0).update(gradients(t), params, state, Context(step=t))
        for n, u in decay.update(updates, params, {}, Context(step=t)).items():
            params[n].sub_(u, alpha=rate(t, merged))
    assert_close(params, fused(merged)[0], rtol=1e-6, atol=1e-6)


def test_it_takes_in_nothing_else() -> None:
    assert Adamw().absorb(WeightDecay()) is None
    assert Adamw(weight_decay=0.0).absorb(WeightDecay(params="a.*")) is None
    assert Adamw(weight_decay=0.0).absorb(Adamw()) is None


@pytest.mark.parametrize(
    "wrong", [{"beta1": 1.0}, {"beta2": -0.1}, {"eps": -1e-8}, {"weight_decay": -0.1}, {"lr": -1.0}]
)
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(Adamw, wrong, "here")


def test_the_name_a_recipe_uses() -> None:
    assert Adamw().name == "adamw"
    assert Adamw.default
