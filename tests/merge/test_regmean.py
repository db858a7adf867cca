"""RegMean: the merged layer is the least-squares one, and what it is given is what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.merge._data import Sample
from trainwright.merge.regmean import Regmean, Seen

draw = torch.Generator().manual_seed(0)
INPUTS = [torch.randn(50, 6, generator=draw) @ torch.randn(6, 6, generator=draw) for _ in range(2)]
WEIGHTS = [torch.randn(4, 6, generator=draw) for _ in range(2)]


def merged(turned: bool) -> torch.Tensor:
    ctx = Context(memory={"regmean": [{"w": Seen(x.T @ x, turned)} for x in INPUTS]})
    made = Regmean(shrink=1.0).combine("w", [w.T if turned else w for w in WEIGHTS], None, ctx)
    return made.T if turned else made


@pytest.mark.parametrize("turned", [False, True])
def test_it_is_the_least_squares_solution(turned: bool) -> None:
    x = torch.cat(INPUTS).double()
    y = torch.cat([i.double() @ w.double().T for i, w in zip(INPUTS, WEIGHTS, strict=True)])
    wanted = torch.linalg.lstsq(x, y).solution.T
    assert torch.allclose(merged(turned).double(), wanted, atol=1e-3)

    def error(w: torch.Tensor) -> float:
        return float((x @ w.double().T - y).square().sum())
    assert error(merged(turned)) < 0.9 * error(sum(WEIGHTS) / 2)


def test_with_diagonals_alone_it_weighs_inputs_and_what_nobody_sees_is_averaged() -> None:
    grams = [torch.diag(torch.tensor(d)) for d in ([3.0, 0.0], [1.0, 0.0])]
    one, two = torch.tensor([[4.0, 1.0]]), torch.tensor([[8.0, 3.0]])
    ctx = Context(memory={"regmean": [{"w": Seen(g, False)} for g in grams]})
    made = Regmean().combine("w", [one, two], None, ctx)
    assert torch.allclose(made, torch.tensor([[5.0, 2.0]]), atol=1e-4)
    assert torch.equal(Regmean().combine("norm", [one, two], None, ctx), (one + two) / 2)


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_what_layers_are_given_is_measured(kind: str, tmp_path: Path) -> None:
    """Its trace is the sum of squares of the inputs, which a hook on one layer sees as well."""
    ctx, model = tiny.merging(tmp_path), tiny.model(kind).eval()
    method = Regmean(sample=Sample(rows=3, length=32), shrink=0.5)
    layer = {tiny.LLAMA: "model.layers.1.mlp.down_proj", tiny.GPT2: "transformer.h.1.attn.c_proj"}[kind]
    held: list[torch.Tensor] = []
    hook = model.get_submodule(layer).register_forward_pre_hook(lambda _, args: held.append(args[0].detach()))
    found = method.seen(model, 0, ctx)
    hook.remove()
    x = torch.cat([h.flatten(0, -2) for h in held])
    gram = x.T @ x
    assert torch.allclose(found[f"{layer}.weight"].gram, 0.5 * gram + 0.5 * gram.diagonal().diag(), rtol=1e-4)
    assert found[f"{layer}.weight"].turned == (kind == tiny.GPT2)


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"shrink must be from 0 to 1, not 1\.5"):
        make(Regmean, {"shrink": 1.5}, "merged")
