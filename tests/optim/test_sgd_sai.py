"""SGD-SaI: the formula over many steps, a scale that never changes, half of AdamW's bytes, and the cases
without a ratio."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import State, Tensors
from trainwright.core.settings import make
from trainwright.optim.adamw import Adamw
from trainwright.optim.sgd_sai import SgdSai

SHAPES = {"a.weight": (7, 5), "a.bias": (7,), "conv.weight": (3, 4, 2), "row.weight": (1, 6)}
STEPS = 12


def drawn(seed: int, scale: float = 1.0) -> Tensors:
    rng = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=rng, dtype=torch.float64) * scale for n, s in SHAPES.items()}


def rate(t: int, method: SgdSai) -> float:
    return method.lr * (1 - t / STEPS)


def by_formula(method: SgdSai) -> Tensors:
    """The paper's algorithm, entry by entry: decay by the plain rate, an averaged momentum that starts as
    the gradient."""
    out = {}
    for n, p in drawn(0).items():
        first = drawn(100)[n]
        mean = sum(first.flatten().tolist()) / first.numel()
        deviation = math.sqrt(sum((x - mean) ** 2 for x in first.flatten().tolist()) / (first.numel() - 1))
        gsnr = math.sqrt(sum(x * x for x in first.flatten().tolist())) / (deviation + method.eps)
        decay = method.weight_decay if method.decay_1d or p.ndim > 1 else 0.0
        m = first
        for t in range(STEPS):
            m = method.momentum * m + (1 - method.momentum) * drawn(100 + t)[n] if t else first
            p = p * (1 - rate(t, method) * decay) - rate(t, method) * gsnr * m
        out[n] = p
    return out


def stepped(method: SgdSai, in_place: bool) -> tuple[Tensors, State]:
    params, state = drawn(0), {}
    for t in range(STEPS):
        ctx = Context(step=t)
        if in_place:
            method.apply(drawn(100 + t), params, state, ctx, rate(t, method))
            continue
        for n, u in method.update(drawn(100 + t), params, state, ctx).items():
            params[n].sub_(u, alpha=rate(t, method))
    return params, state


@pytest.mark.parametrize("in_place", [True, False], ids=["apply", "update"])
@pytest.mark.parametrize(
    "method",
    [SgdSai(), SgdSai(momentum=0.5, weight_decay=0.3, decay_1d=True, eps=0.1), SgdSai(momentum=0.0)],
    ids=["default", "other", "no_momentum"],
)
def test_equals_the_formula(method: SgdSai, in_place: bool) -> None:
    """The ratio is kept in float32, hence 1e-6."""
    params, _ = stepped(method, in_place)
    for n, p in by_formula(method).items():
        torch.testing.assert_close(params[n], p, rtol=1e-6, atol=1e-6)


def test_the_first_step_by_hand() -> None:
    """g = (3, -1, 1): norm sqrt(11), mean 1, unbiased deviation 2; the whole of g is the momentum, not a
    tenth of it."""
    p, g = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([3.0, -1.0, 1.0])
    u = SgdSai(eps=0.0).update({"w": g}, {"w": p}, {}, Context())["w"]
    torch.testing.assert_close(u, math.sqrt(11) / 2 * g)


def test_the_scale_is_that_of_the_first_gradient_for_ever_and_not_of_its_size() -> None:
    method, state, p = SgdSai(), {}, {n: t.clone() for n, t in drawn(0).items()}
    method.apply(drawn(1), p, state, Context(), 0.1)
    kept = {n: leaf["gsnr"].clone() for n, leaf in state["param"].items()}
    for t in range(3):
        method.apply(drawn(2 + t, scale=100.0), p, state, Context(step=1 + t), 0.1)
    assert all(torch.equal(state["param"][n]["gsnr"], kept[n]) for n in SHAPES)
    for n, g in drawn(1, scale=1000.0).items():
        torch.testing.assert_close(method.gsnr(g), kept[n], rtol=1e-5, atol=0.0)


def test_a_tensor_of_one_entry_or_of_equal_ones_does_not_explode() -> None:
    assert float(SgdSai().gsnr(torch.tensor([0.3]))) == 1.0
    assert float(SgdSai().gsnr(torch.tensor(-2.0))) == 1.0
    assert float(SgdSai().gsnr(torch.full((2, 8), 0.5))) == 4.0


def test_a_tensor_whose_first_gradient_is_zero_waits_for_one_that_is_not() -> None:
    """As A of LoRA, while B is zero. Until then only the decay acts."""
    method, state, p = SgdSai(weight_decay=0.5), {}, {"w": torch.ones(1, 4)}
    method.apply({"w": torch.zeros(1, 4)}, p, state, Context(), 0.1)
    assert not state["param"] and torch.equal(p["w"], torch.full((1, 4), 0.95))
    assert torch.equal(method.update({"w": torch.zeros(1, 4)}, p, state, Context())["w"], 0.5 * p["w"])
    g = torch.tensor([[1.0, -1.0, 2.0, -2.0]])
    method.apply({"w": g}, p, state, Context(step=1), 0.1)
    assert torch.equal(state["param"]["w"]["momentum_buffer"], g) and float(state["param"]["w"]["gsnr"]) > 1


def test_state_is_half_of_adamws_bytes() -> None:
    model = nn.Sequential(nn.Linear(64, 128), nn.Linear(128, 32))
    params = {n: p.detach() for n, p in model.named_parameters()}
    sizes = []
    for method in (SgdSai(), Adamw()):
        state: State = {}
        method.apply({n: torch.randn_like(p) for n, p in params.items()}, params, state, Context(), 1e-3)
        sizes.append(
            sum(t.numel() * t.element_size() for leaves in state["param"].values() for t in leaves.values())
        )
    numbers = sum(p.numel() for p in params.values())
    assert sizes == [4 * numbers + 4 * len(params), 8 * numbers + 4 * len(params)]
    assert sizes[0] / sizes[1] < 0.5005


def test_it_owns_the_step_of_what_it_is_limited_to_and_gradients_stay_its_callers() -> None:
    method, given = SgdSai(params="*.weight"), drawn(1)
    assert method.claims(nn.Linear(1, 1)) == {"step:*.weight"}
    params, state = drawn(0), {}
    method.apply(given, params, state, Context(), 0.1)
    method.apply(drawn(2), params, state, Context(), 0.1)
    assert all(torch.equal(g, drawn(1)[n]) for n, g in given.items()), "the momentum must be a copy"


@pytest.mark.parametrize("wrong", [{"momentum": 1.0}, {"eps": -1e-8}, {"weight_decay": -0.1}, {"lr": -1.0}])
def test_settings_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(SgdSai, wrong, "here")


def ratios(n: int) -> Tensor:
    return torch.stack(
        [SgdSai().gsnr(torch.randn(n, generator=torch.Generator().manual_seed(i))) for i in range(8)]
    )


@pytest.mark.parametrize("n", [16, 4096])
def test_noise_of_mean_zero_has_the_root_of_its_entries(n: int) -> None:
    assert abs(float(ratios(n).mean()) / math.sqrt(n) - 1) < 0.1
