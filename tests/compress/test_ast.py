"""AST: the step by hand with its decay of masked weights, gradients that pass the mask, and an N:M end."""
from __future__ import annotations

import pytest
import torch
from torch import Tensor

from trainwright.check import tiny
from trainwright.compress.ast import Ast, AstLinear
from trainwright.core import masks
from trainwright.core.context import Context

NAME = "model.layers.0.self_attn.q_proj.weight"


def ready(**settings: object) -> tuple[Ast, Context, dict[str, Tensor]]:
    model, method = tiny.model(), Ast(**{"lr": 1e-3, "weight_decay": 0.0, "decay": 0.5, "ramp": 4} | settings)  # type: ignore[arg-type]
    method.operate(model, Context())
    return method, Context(policy=model), {n: p.data for n, p in model.named_parameters()}


def test_masked_weights_decay_in_the_numerator_and_in_the_square() -> None:
    method, ctx, params = ready()
    kept = method.mine(ctx.policy)["model.layers.0.self_attn.q_proj"].kept               # type: ignore[arg-type]
    w, state = params[NAME], {}                                                          # type: ignore[var-annotated]
    m = v = torch.zeros_like(w)
    for step in range(3):
        ctx.step = step
        g = torch.randn(w.shape, generator=torch.Generator().manual_seed(step))
        found = method.update({NAME: g.clone()}, params, state, ctx)[NAME]
        m = 0.9 * m + 0.1 * g
        u = m + 0.5 * (step + 1) / 4 * torch.where(kept, 0.0, w)
        v = 0.95 * v + 0.05 * u.square()
        by_hand = (u / (1 - 0.9**(step + 1))) / ((v / (1 - 0.95**(step + 1))).sqrt() + 1e-8)
        assert torch.allclose(found, by_hand, atol=1e-5), step
    norm = "model.norm.weight"
    plain = method.update({norm: torch.ones(16)}, params, state, ctx)[norm]
    assert torch.allclose(plain, torch.ones(16), atol=1e-5), "what has no mask has Adam"


def test_the_gradient_reaches_every_weight() -> None:
    method, ctx, _ = ready()
    one = method.mine(ctx.policy)["model.layers.0.self_attn.q_proj"]                     # type: ignore[arg-type]
    x = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    y = one(x)
    assert torch.allclose(y, x @ (one.weight * one.kept).T, atol=1e-6)
    y.sum().backward()
    assert torch.allclose(one.weight.grad, x.sum(0).expand(16, 16), atol=1e-5)           # type: ignore[arg-type]


def test_the_mask_is_taken_anew_every_few_steps() -> None:
    method, ctx, params = ready(every=3)
    one = method.mine(ctx.policy)["model.layers.0.self_attn.q_proj"]                     # type: ignore[arg-type]
    before = one.kept.clone()
    params[NAME][~before] = 100.0
    for ctx.step in (1, 2, 3):
        method.settle(params, {}, ctx)
        assert torch.equal(one.kept, before) == (ctx.step < 3)
    assert torch.equal(one.kept, ~before), "what was left out is large now"


@pytest.mark.parametrize("net", [tiny.LLAMA, tiny.GPT2])
def test_the_end_has_two_of_four(net: str) -> None:
    model, method, ids = tiny.model(net), Ast(), torch.arange(24)[None]
    method.operate(model, Context())
    assert all(p.requires_grad for p in model.parameters())
    with torch.no_grad():
        before = model.eval()(ids).logits
        method.fold(model)
        assert torch.allclose(model(ids).logits, before, atol=1e-6)
    assert not any(isinstance(m, AstLinear) for m in model.modules())
    for name, mask in masks.of(model).items():
        rows = mask if net == tiny.LLAMA else mask.T
        assert (rows.reshape(-1, 4).sum(1) == 2).all()
        assert (model.get_parameter(name)[~mask] == 0).all()
    with pytest.raises(ValueError, match="pattern must be such as"):
        Ast(pattern="")
