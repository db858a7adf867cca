"""GPTQ: equal to the columns one by one with direct inversion, and better than rounding on what it saw."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.compress.test_sparsegpt import damped, layer, made_worse
from tests.compress.test_wanda import context
from trainwright.check import tiny
from trainwright.compress.gptq import GPTQ
from trainwright.compress.magnitude import Magnitude
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm import quantized

ALL = torch.ones(6, 16, dtype=torch.bool)


def rounded(column: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    top = 2 ** (bits - 1)
    return np.asarray((np.clip(np.round(column / scale + zero), -top, top - 1) - zero) * scale)


def follows(found: np.ndarray, w: np.ndarray, h: np.ndarray, method: GPTQ) -> None:
    """Assert that each column is the nearest on its grid of what the columns before it made of it, with the
    inverse of what is left of H computed anew for each. Of two values equally near either will do."""
    w, group, untouched = w.copy(), method.group_size or w.shape[1], w.copy()
    order = np.argsort(-np.diag(h), kind="stable") if method.act_order else np.arange(w.shape[1])
    late = method.group_size and not method.act_order
    for n, j in enumerate(order):
        rest, first = order[n:], j // group * group
        if not late or j == first:
            source = torch.from_numpy((w if late else untouched)[:, first:first + group])
            grid = quantized.grid(source, method.bits, method.symmetric, 0)
            scale, zero = grid.scale[:, 0].double().numpy(), grid.zero[:, 0].double().numpy()
        nearest = rounded(w[:, j], scale, zero, method.bits)
        assert np.allclose(found[:, j], rounded(found[:, j], scale, zero, method.bits), atol=1e-4), "grid"
        assert (np.abs(found[:, j] - w[:, j]) <= np.abs(nearest - w[:, j]) + 1e-4).all(), f"column {j}"
        inverse = np.linalg.inv(h[np.ix_(rest, rest)])
        w[:, rest[1:]] -= np.outer((w[:, j] - found[:, j]) / inverse[0, 0], inverse[0, 1:])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [0, 4, 8])
@pytest.mark.parametrize(("bits", "symmetric"), [(2, True), (3, False), (4, True), (8, False)])
def test_it_is_the_direct_solution(bits: int, symmetric: bool, group_size: int, act_order: bool) -> None:
    w, x = layer()
    method = GPTQ(bits=bits, symmetric=symmetric, group_size=group_size, act_order=act_order)
    follows(method.solve(w, x.T @ x, ALL)[0].numpy(), w.double().numpy(), damped(x), method)


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("group_size", [0, 4])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_output_changes_less_than_by_rounding(bits: int, group_size: int, act_order: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(32, 64, generator=draw)
    x = torch.randn(1000, 64, generator=draw) @ torch.randn(64, 64, generator=draw)
    method = GPTQ(bits=bits, group_size=group_size, act_order=act_order)
    found, _ = method.solve(w, x.T @ x, torch.ones_like(w, dtype=torch.bool))
    nearest = quantized.grid(w, bits, True, group_size).nearest(w)
    assert made_worse(w, found, x) < made_worse(w, nearest, x)


def test_inputs_that_share_nothing_are_rounded() -> None:
    """With H the identity no column can make up for another."""
    w, _ = layer()
    nearest = quantized.grid(w, 3, False, 0).nearest(w)
    assert torch.allclose(GPTQ(bits=3, symmetric=False).solve(w, torch.eye(16), ALL)[0], nearest, atol=1e-6)


def test_a_block_is_no_limit() -> None:
    """More columns than one block, where the errors go on to the next."""
    draw = torch.Generator().manual_seed(1)
    w = torch.randn(3, 200, generator=draw)
    x = torch.randn(900, 200, generator=draw) @ torch.randn(200, 200, generator=draw)
    method = GPTQ(bits=4, group_size=50)
    found, _ = method.solve(w, x.T @ x, torch.ones_like(w, dtype=torch.bool))
    follows(found.numpy(), w.double().numpy(), damped(x), method)


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_pruned_model_stays_pruned_and_few_values_are_left(tmp_path: Path, symmetric: bool) -> None:
    model = tiny.model(tiny.GPT2).eval()
    model.config.use_cache = False
    Magnitude(sparsity=0.5).operate(model, Context())
    gone = {n: p == 0 for n, p in model.named_parameters() if n.endswith("c_fc.weight")}
    GPTQ(bits=3, symmetric=symmetric).operate(model, context(tmp_path, model))
    for name, mask in gone.items():
        weight = model.get_parameter(name)
        assert (weight[mask] == 0).all()
        assert all(len(column.unique()) <= 8 for column in weight.T), "a Conv1D keeps its outputs as columns"


def test_few_tokens_odd_groups_and_no_data(tmp_path: Path) -> None:
    model = tiny.model().eval()
    ctx = context(tmp_path, model)
    batch = next(iter(ctx.batches()))                                                  # type: ignore[misc]
    GPTQ().operate(model, ctx)
    assert not ctx.texts
    ctx.batches = lambda: iter([{n: batch[n][:1, :5] for n in ("input_ids", "position_ids")}])
    GPTQ().operate(model, ctx)
    assert "saw fewer calibration tokens than they have inputs" in ctx.texts["gptq"]
    with pytest.raises(UserError, match=r"group_size = 7 does not divide the 16 inputs of .*q_proj"):
        GPTQ(group_size=7).operate(model, ctx)
    with pytest.raises(UserError, match=r"gptq looks at data: name a corpus as from\.data"):
        GPTQ().operate(model, Context())
