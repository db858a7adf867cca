"""The bridge to ``pytorch_optimizer``: the package's own steps, exact resumes, clear refusals."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors
from trainwright.core.settings import make
from trainwright.optim import pytorch_optimizer as module
from trainwright.optim._trial import reloaded
from trainwright.optim.pytorch_optimizer import PytorchOptimizer

pytest.importorskip("pytorch_optimizer", reason="the extra 'optimizers' is not installed")

STEPS = 12
PLAIN: list[dict[str, Any]] = [
    {"optimizer": "Lion"},
    {"optimizer": "SOAP", "options": {"precondition_frequency": 3}},
    {"optimizer": "ADOPT"},
    {"optimizer": "AdEMAMix"},
    {"optimizer": "Prodigy", "lr": 1.0},
    {"optimizer": "AggMo"},
    {"optimizer": "AdaShift"},
    {"optimizer": "MADGRAD"},
    {"optimizer": "SPAM"},
    {"optimizer": "Muon", "group": {"use_muon": True}},
    {"optimizer": "Kron"},
    {"optimizer": "ScheduleFreeAdamW"},
]
"""One for each way of remembering: tensors, lists of tensors, numbers of the group, tables, queues, keys of
no parameter, and one that draws random numbers of two kinds."""


def drawn(t: int) -> Tensors:
    rng = torch.Generator().manual_seed(t)
    return {"a": torch.randn(6, 4, generator=rng), "b": torch.randn(3, 5, generator=rng)}


def by_hand(method: PytorchOptimizer) -> tuple[Tensors, torch.optim.Optimizer]:
    params = {n: p.requires_grad_() for n, p in drawn(999).items()}
    optimizer = method.build(list(params.values()))
    for t in range(STEPS):
        seed = Context(step=t).rng("pytorch_optimizer/*").initial_seed()
        for n, g in drawn(t).items():
            params[n].grad = g
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        optimizer.step()
    return params, optimizer


@torch.no_grad()
def bridged(method: PytorchOptimizer, *, in_place: bool) -> tuple[Tensors, State]:
    params, state = drawn(999), {}
    for t in range(STEPS):
        ctx = Context(step=t, knobs={"lr": 1.0})
        if in_place:
            method.apply(drawn(t), params, state, ctx, method.lr)
        else:
            for n, u in method.update(drawn(t), params, state, ctx).items():
                params[n].sub_(u, alpha=method.lr)
        state = reloaded(state)
    return params, state


@pytest.mark.parametrize("settings", PLAIN, ids=lambda s: s["optimizer"])
def test_equal_to_the_package_and_resumed_at_every_step(settings: dict[str, Any]) -> None:
    method = make(PytorchOptimizer, {"lr": 0.01, **settings}, "here")
    expected, _ = by_hand(method)
    exact, _ = bridged(method, in_place=True)
    handed_on, _ = bridged(method, in_place=False)
    for n, p in expected.items():
        assert torch.equal(exact[n], p)
        torch.testing.assert_close(handed_on[n], p.detach(), rtol=1e-5, atol=1e-5)


def test_schedule_free_is_measured_with_its_average() -> None:
    method = PytorchOptimizer(optimizer="ScheduleFreeAdamW", lr=0.01)
    expected, optimizer = by_hand(method)
    params, state = bridged(method, in_place=True)
    shown = method.view(params, state)
    optimizer.eval()
    assert all(torch.equal(shown[n], p) for n, p in expected.items())
    assert not torch.equal(shown["a"], params["a"])
    assert PytorchOptimizer(optimizer="Lion").view(params, state) == {}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "lion"}, "did you mean 'Lion'"),
        ({"optimizer": "Lyon"}, "did you mean 'Lion'"),
        ({"optimizer": "Lion", "options": {"weight_decy": 0.1}}, "did you mean 'weight_decay'"),
        ({"optimizer": "Lion", "options": {"betas": [2.0, 0.9]}}, "betas|beta1"),
        ({"optimizer": "SophiaH"}, "cannot take a step on gradients alone"),
        ({"optimizer": "AdaHessian"}, "cannot take a step on gradients alone"),
        ({"optimizer": "AliG"}, "closure"),
        ({"optimizer": "LBFGS"}, "closure"),
        ({"optimizer": "EmoNavi"}, "needs the loss inside its step"),
        ({"optimizer": "SAM"}, "needs base_optimizer"),
        ({"optimizer": "LOMO"}, "wraps another optimizer or the whole model"),
        ({"optimizer": "Conda"}, "cannot be saved without pickling"),
        ({"optimizer": "ASGD"}, "sets its own learning rate"),
        ({"optimizer": "Muon"}, "use_muon"),
    ],
)
def test_what_is_refused_and_why(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(PytorchOptimizer, settings, "here")


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install trainwright\[optimizers\]"):
        make(PytorchOptimizer, {"optimizer": "Lion"}, "here")


def test_it_leaves_the_global_generators_alone() -> None:
    def states() -> tuple[Any, Tensor, Any]:
        return random.getstate(), torch.get_rng_state(), np.random.get_state()[1].tolist()

    before = states()
    bridged(PytorchOptimizer(optimizer="Kron"), in_place=True)
    after = states()
    assert before[0] == after[0] and torch.equal(before[1], after[1]) and before[2] == after[2]


def test_products_of_many_matrices_are_taken_in_the_cheapest_order() -> None:
    """Kron multiplies a gradient by four matrices at once. From left to right the first two make a tensor of
    four dimensions; in the order that opt_einsum finds, all are products of two matrices."""
    from torch.utils.flop_counter import FlopCounterMode
    q, g = torch.randn(8, 8), torch.randn(8, 8)
    with FlopCounterMode(display=False) as counter:
        torch.einsum("ab,cd,ae,cf,ef->bd", q, q, q, q, g)
    assert counter.get_total_flops() == 4 * 2 * 8**3
