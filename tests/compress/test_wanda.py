"""Wanda: equation 1 by hand, per output, and each block on what the pruned blocks
before it make of the data."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainwright.check import tiny
from trainwright.compress.wanda import Wanda
from trainwright.core.batches import Calibration
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.layers import as_linear_weight, linear_layers


def context(folder: Path, model: torch.nn.Module) -> Context:
    ctx = tiny.context(folder)
    ctx.policy = model
    ctx.batches = Calibration([tiny.default("Data")], ctx, 16)  # type: ignore[list-item]
    return ctx


def norms(model: torch.nn.Module, ctx: Context) -> dict[str, Tensor]:
    """||X_j|| of each layer in the model as it stands, from its own forward pass."""
    sums: dict[str, Tensor] = {}
    batches = list(ctx.batches())  # type: ignore[misc]   # before the hooks: to make them runs the model as well

    def hook(name: str) -> object:
        def seen(module: object, args: tuple[Tensor, ...], out: Tensor) -> None:
            sums[name] = sums.get(name, torch.zeros(())) + args[0].flatten(0, -2).square().sum(0)
        return seen

    handles = [m.register_forward_hook(hook(n)) for n, m in linear_layers(model, "all-linear").items()]  # type: ignore[arg-type]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"])
    for handle in handles:
        handle.remove()
    return {n: s.sqrt() for n, s in sums.items()}


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_each_output_loses_the_weights_of_the_lowest_score(tmp_path: Path, kind: str) -> None:
    model, before = tiny.model(kind).eval(), tiny.model(kind)
    if kind == tiny.GPT2:
        model.config.use_cache = before.config.use_cache = False
    ctx = context(tmp_path, model)
    Wanda(sparsity=0.5).operate(model, ctx)
    if kind == tiny.LLAMA:
        # the first block's inputs are those of the untouched model, all others not
        seen = norms(model, ctx)
    else:
        seen = {}
    for name, layer in linear_layers(before, "all-linear").items():
        was, now = as_linear_weight(layer), as_linear_weight(model.get_submodule(name))
        gone = now == 0
        assert gone.sum(1).eq(was.shape[1] // 2).all(), "half of each output"
        assert torch.equal(now[~gone], was[~gone])
        if name in seen and ".q_proj" in name:        # its input is made of pruned blocks alone
            scores = was.abs() * seen[name]
            expected = torch.zeros_like(gone).scatter_(
                1, scores.argsort(dim=1, stable=True)[:, : was.shape[1] // 2], True
            )
            assert torch.equal(gone, expected), name


def test_it_is_not_magnitude(tmp_path: Path) -> None:
    """A small weight on a large input stays, a larger one on a small input goes."""
    model = tiny.model().eval()
    layer = model.get_submodule("model.layers.0.self_attn.q_proj")
    norm = model.get_submodule("model.layers.0.input_layernorm")
    with torch.no_grad():
        norm.weight.fill_(1.0)
        norm.weight[0], norm.weight[1] = 100.0, 0.01
        layer.weight.fill_(1.0)
        layer.weight[:, 0], layer.weight[:, 1] = 0.5, 2.0
    Wanda(sparsity=0.5, layers="*.0.self_attn.q_proj").operate(model, context(tmp_path, model))
    assert (layer.weight[:, 0] != 0).all() and (layer.weight[:, 1] == 0).all()


def test_patterns_and_missing_data(tmp_path: Path) -> None:
    model = tiny.model().eval()
    Wanda(pattern="2:4").operate(model, context(tmp_path, model))
    for w in (w for n, w in model.named_parameters() if "proj" in n):
        assert (w.view(-1, 4) == 0).sum(1).eq(2).all()
    with pytest.raises(UserError, match=r"wanda looks at data: name a corpus as from\.data"):
        Wanda().operate(tiny.model(), Context())
