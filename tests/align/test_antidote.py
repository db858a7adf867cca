"""Antidote: the weights of the highest scores on harmful texts, output by output, by hand."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainwright.align.antidote import Antidote, highest
from trainwright.check import tiny
from trainwright.lm.layers import as_linear_weight, linear_layers

PATTERN = "*.self_attn.[qkv]_proj"


def test_all_but_the_lowest_of_each_row() -> None:
    """Of 5 columns and a share of 0.3, int(3.5) = 3 stay; a threshold over all rows would choose others."""
    scores = torch.tensor([[1.0, 5, 2, 4, 3], [10, 50, 20, 40, 30]])
    assert highest(scores, 0.3).int().tolist() == [[0, 1, 0, 1, 0], [0, 1, 0, 1, 0]]
    assert not highest(scores, 0.0).any() and highest(scores, 1.0).all()


def inputs(model: torch.nn.Module, batches: list[dict[str, Tensor]], names: list[str]) -> dict[str, Tensor]:
    """||X_j|| of layers, from the model's own forward pass."""
    sums = {n: torch.zeros(()) for n in names}

    def hook(name: str):
        def seen(module: object, args: tuple[Tensor, ...], out: Tensor) -> None:
            sums[name] = sums[name] + args[0].flatten(0, -2).square().sum(0)
        return seen
    handles = [model.get_submodule(n).register_forward_hook(hook(n)) for n in names]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False)
    for handle in handles:
        handle.remove()
    return {n: t.sqrt() for n, t in sums.items()}


@pytest.mark.slow
def test_the_scores_are_those_of_the_model_before(tmp_path: Path) -> None:
    """In the second block too, although the first has lost weights by then."""
    model, before = tiny.model().eval(), tiny.model().eval()
    ctx = tiny.untouched(model, tmp_path)
    names = list(linear_layers(before, PATTERN))
    norms = inputs(before, list(ctx.batches()), names)
    Antidote(share=0.25).operate(model, ctx)
    assert len(names) == 6
    for name in names:
        was, now = (as_linear_weight(m.get_submodule(name)) for m in (before, model))
        gone = (was.abs() * norms[name]).topk(4, 1).indices
        right = was.detach().clone().scatter_(1, gone, 0.0)
        assert torch.equal(now, right), name
    others = {n: p for n, p in model.named_parameters() if not any(n.startswith(m) for m in names)}
    assert all(torch.equal(p, dict(before.named_parameters())[n]) for n, p in others.items())


def test_as_many_go_at_random(tmp_path: Path) -> None:
    made = []
    for by in ("harm", "random", "random"):
        model = tiny.model().eval()
        Antidote(share=0.25, by=by).operate(model, tiny.untouched(model, tmp_path))
        made.append({n: as_linear_weight(m) == 0 for n, m in linear_layers(model, PATTERN).items()})
    for name, gone in made[0].items():
        assert (gone.sum(1) == 4).all() and (made[1][name].sum(1) == 4).all()
        assert torch.equal(made[1][name], made[2][name]) and not torch.equal(gone, made[1][name])
