"""The bridge to ``torch.optim``: PyTorch's own steps, exact resumes, clear refusals."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Optimizer, State, Tensors
from trainwright.core.settings import make
from trainwright.optim.torch_optim import TorchOptim

STEPS = 10
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("RMSprop", {"centered": True}),
    ("Adamax", {}),
    ("NAdam", {}),
    ("Muon", {"weight_decay": 0.2}),
    ("Adafactor", {}),
    ("ASGD", {}),
    ("AdamW", {"betas": [0.8, 0.9], "amsgrad": True, "fused": True}),
]


def drawn(t: int) -> Tensors:
    rng = torch.Generator().manual_seed(t)
    return {"a": torch.randn(6, 4, generator=rng), "b": torch.randn(3, 5, generator=rng)}


def rate(t: int) -> float:
    return 0.05 * (1 - t / STEPS)


def by_hand(method: TorchOptim) -> Tensors:
    """The same steps by an optimizer that nobody takes apart."""
    params = {n: p.requires_grad_() for n, p in drawn(999).items()}
    optimizer = method.build(list(params.values()))
    for t in range(STEPS):
        for n, g in drawn(t).items():
            params[n].grad = g
        optimizer.param_groups[0]["lr"] = rate(t)
        optimizer.step()
    return {n: p.detach() for n, p in params.items()}


def from_disk(state: Any, tensors: list[Tensor]) -> Any:
    """JSON with numbers for tensors, and the tensors: what a checkpoint keeps."""
    if isinstance(state, Tensor):
        tensors.append(state)
        return {"$": len(tensors) - 1}
    if isinstance(state, dict):
        return {k: from_disk(v, tensors) for k, v in state.items()}
    return [from_disk(v, tensors) for v in state] if isinstance(state, list) else state


def saved_and_loaded(state: State) -> State:
    kept: list[Tensor] = []
    text = json.dumps(from_disk(state, kept))
    copies = [t.clone(memory_format=torch.contiguous_format) for t in kept]
    loaded: State = json.loads(text, object_hook=lambda d: copies[d["$"]] if "$" in d else d)
    return loaded


@torch.no_grad()
def bridged(method: Optimizer, *, in_place: bool, resume: bool) -> Tensors:
    params, state = drawn(999), {}
    for t in range(STEPS):
        ctx = Context(step=t, knobs={"lr": rate(t) / method.lr})
        if in_place:
            method.apply(drawn(t), params, state, ctx, rate(t))
        else:
            for n, u in method.update(drawn(t), params, state, ctx).items():
                params[n].sub_(u, alpha=rate(t))
        state = saved_and_loaded(state) if resume else state
    return params


def same(a: Tensors, b: Tensors) -> bool:
    return all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize(("optimizer", "options"), CHOICES, ids=[n for n, _ in CHOICES])
def test_equal_to_torch_and_resumed_at_every_step(optimizer: str, options: dict[str, Any]) -> None:
    method = TorchOptim(optimizer=optimizer, options=options, lr=0.05)
    expected = by_hand(method)
    assert same(bridged(method, in_place=True, resume=False), expected)
    assert same(bridged(method, in_place=True, resume=True), expected)
    handed_on = bridged(method, in_place=False, resume=True)
    for n, p in expected.items():
        torch.testing.assert_close(handed_on[n], p, rtol=1e-5, atol=1e-6)


def test_at_a_rate_of_zero_nothing_moves() -> None:
    method = TorchOptim(optimizer="SGD")
    out = method.update(drawn(0), drawn(1), {}, Context(knobs={"lr": 0.0}))
    assert all(not u.any() for u in out.values())


def test_gradients_that_others_read_stay_as_they_came() -> None:
    grads, params = drawn(0), drawn(999)
    with torch.no_grad():
        TorchOptim(optimizer="SGD", options={"weight_decay": 0.1}).apply(
            dict(grads), params, {}, Context(grads=grads), 0.1
        )
    assert same(grads, drawn(0)) and not same(params, drawn(999))


def test_a_parameter_without_a_gradient_keeps_its_state() -> None:
    method, params, state = TorchOptim(optimizer="SGD", options={"momentum": 0.9}), drawn(999), {}
    with torch.no_grad():
        method.apply(drawn(0), params, state, Context(), 0.1)
        before = state["param"]["b"]["momentum_buffer"].clone()
        method.apply({"a": drawn(1)["a"]}, params, state, Context(step=1), 0.1)
    assert torch.equal(state["param"]["b"]["momentum_buffer"], before)


def test_the_model_gets_no_gradients_from_it() -> None:
    p = nn.Parameter(torch.ones(2, 2))
    with torch.no_grad():
        TorchOptim(optimizer="SGD").apply({"p": torch.ones(2, 2)}, {"p": p}, {}, Context(), 0.5)
    assert p.grad is None and torch.equal(p, torch.full((2, 2), 0.5))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"optimizer": "sgd"}, "did you mean 'SGD'"),
        ({"optimizer": "RMSProb"}, "did you mean 'RMSprop'"),
        ({"optimizer": "SGD", "options": {"momentun": 0.9}}, "did you mean 'momentum'"),
        ({"optimizer": "SGD", "options": {"lr": 0.9}}, "a setting of its own"),
        ({"optimizer": "SGD", "options": {"momentum": -1.0}}, "Invalid momentum value"),
        ({"optimizer": "Adam", "options": {"betas": 0.9}}, "Adam cannot be built"),
        ({"optimizer": "LBFGS"}, "closure"),
        ({"optimizer": "SparseAdam"}, "does not support dense gradients"),
        ({}, "'optimizer' is needed"),
    ],
)
def test_what_is_refused_and_why(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        make(TorchOptim, settings, "here")


def test_muon_takes_matrices_only() -> None:
    model, method = nn.Linear(3, 3), TorchOptim(optimizer="Muon")
    with pytest.raises(UserError, match=r"only supports 2D .* limit it with 'params' .* adamw"):
        method.init(model, Context())
    assert TorchOptim(optimizer="Muon", params="weight").init(model, Context()) == {}


def test_it_leaves_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    with torch.no_grad():
        TorchOptim(optimizer="SGD").apply(drawn(0), drawn(999), {}, Context(), 0.1)
    assert torch.equal(torch.get_rng_state(), before)
