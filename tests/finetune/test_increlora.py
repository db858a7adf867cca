"""IncreLoRA: ranks rise to the budget exactly, where importance says, and a component in use
brings what it has learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.lm.architectures import IDS, make, moved
from tests.pretrain.small import build, train
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make as settings
from trainwright.families import deltas
from trainwright.finetune.increlora import QUIET, WAITING, Increlora, allocate, orthonormal, remember
from trainwright.lm.layers import as_linear_weight
from trainwright.optim.adamw import Adamw

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
ADAM = Adamw(lr=1e-2, weight_decay=0.0)
SHORT = {"rank": 3, "begin": 2, "end": 8, "every": 2}


def operated(kind: str, method: Increlora):
    model = make(kind)
    method.operate(model, Context(seed=1))
    return model


# ---- the addition ------------------------------------------------------------------------------------------


def test_formula_by_hand() -> None:
    """Two in use, one waits, the fourth is not there: s = 6 / (2 + 1e-5), and the waiting one has
    no gradient of its E."""
    method = Increlora(rank=2, most=4, alpha=6.0, layers="*.0.mlp.up_proj")
    plain, model = make("llama").model.layers[0].mlp.up_proj, operated("llama", method)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.ranks.tolist() == [1, 1] and layer.increlora_E.tolist() == pytest.approx(
        [0, WAITING, WAITING, WAITING]
    )
    layer.use(2, waiting=True)
    layer.increlora_E.data.copy_(torch.tensor([2., -1, WAITING, 5]))
    x, (A, B) = torch.randn(2, 5, 32), (layer.increlora_A.detach(), layer.increlora_B.detach())
    dW = 6 / (2 + 1e-5) * (2 * B[:, :1] @ A[:1] - B[:, 1:2] @ A[1:2] + WAITING * B[:, 2:3] @ A[2:3])
    y = layer(x)
    assert torch.allclose(y, plain(x) + x @ dW.T, atol=1e-6)
    y.square().sum().backward()
    assert (layer.increlora_E.grad[:2] != 0).all() and not layer.increlora_E.grad[2:].any()
    assert layer.increlora_A.grad[2].abs().sum() > 0 and not layer.increlora_A.grad[3].any()
    layer.use(2, waiting=False)
    assert layer.ranks.tolist() == [2, 0] and layer.values()[2:].tolist() == [0, 0]


def test_score_is_that_of_the_whole_increment_row_by_row() -> None:
    method = Increlora(rank=2, layers="*.0.mlp.up_proj")
    model = operated("llama", method)
    layer = model.model.layers[0].mlp.up_proj
    layer.increlora_E.data[0] = 3.0
    x, g = torch.randn(4, 6, 32), torch.randn(4, 6, 48)
    layer(x).backward(g)
    dW = (layer.increlora_B * layer.values()) @ layer.increlora_A
    rows = [(dW * (g[i].T @ x[i])).abs().sum() / math.sqrt(dW.numel()) for i in range(4)]
    assert torch.allclose(layer.increlora_score.grad / QUIET, sum(rows).view(1), rtol=1e-4)
    whole = layer.increlora_score.grad.clone()
    layer.increlora_score.grad = None
    for part in (slice(0, 1), slice(1, 4)):
        layer(x[part]).backward(g[part])
    assert torch.allclose(layer.increlora_score.grad, whole, rtol=1e-5)
    layer.scored, layer.increlora_score.grad = False, None
    layer(x).backward(g)
    assert layer.increlora_score.grad is None


def test_importance_by_hand() -> None:
    shared = {"sensitivity": {"a": 1.0}, "uncertainty": {"a": 0.5}}
    remember({"a": torch.tensor([3.0 * QUIET])}, shared, 0.5, 0.8)
    assert shared["sensitivity"]["a"] == 2.0 and shared["uncertainty"]["a"] == pytest.approx(
        0.8 * 0.5 + 0.2 * 1.0
    )


def test_gradient_of_the_orthogonality_is_autograds() -> None:
    matrix = torch.randn(3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (matrix @ matrix.T - torch.eye(3)).norm().backward()
    assert torch.allclose(orthonormal(matrix.detach()), matrix.grad, atol=1e-6)
    assert orthonormal(torch.eye(3, 7)).abs().max() == 0


# ---- who gets more -----------------------------------------------------------------------------------------


def shared(ranks: dict[str, int], importance: dict[str, float]) -> dict:
    return {"ranks": ranks, "sensitivity": importance, "uncertainty": dict.fromkeys(ranks, 1.0)}


def test_allocation_by_hand() -> None:
    state = shared({"a": 1, "b": 1, "c": 1}, {"a": 0.1, "b": 0.3, "c": 0.2})
    assert allocate(state, 5, grow=1, most=9) == {"a": 1, "b": 2, "c": 2}
    # the last gets what is left
    assert allocate(state, 6, grow=2, most=9) == {"a": 1, "b": 3, "c": 2}
    assert allocate(state, 9, grow=2, most=4) == {"a": 3, "b": 3, "c": 3}
    assert allocate(state, 11, grow=2, most=4) == {"a": 3, "b": 4, "c": 4}
    assert allocate(state, 12, grow=1, most=4) == {"a": 4, "b": 4, "c": 4} and state["ranks"]["b"] == 1


@pytest.mark.parametrize(("grow", "rank"), [(1, 3), (2, 3), (3, 2)])
def test_the_budget_is_met_exactly_and_never_overshot(grow: int, rank: int) -> None:
    method = Increlora(**SHORT | {"rank": rank, "grow": grow})
    run = train(build(), method, ADAM, steps=12)
    layers, totals = method.mine(run.model), []
    for step in range(1, 13):
        run.run(until=step)
        ranks = {n: int(m.ranks[0]) for n, m in layers.items()}
        assert ranks == run.states["increlora.1"]["shared"]["ranks"]
        totals.append(sum(ranks.values()))
    steps = [14 + round((rank - 1) * 14 * i / 3) for i in (1, 2, 3)]
    assert totals == [14] * 3 + [steps[0]] * 2 + [steps[1]] * 2 + [14 * rank] * 5
    assert all(int(m.ranks[1]) == 0 and not m.scored for m in layers.values())


def test_ranks_grow_where_the_loss_depends_on_the_addition() -> None:
    """All blocks but the second are cut off from the loss: their layers stay at rank 1."""
    method = Increlora(rank=2, begin=2, end=6, every=2, most=8)
    model = build()
    first = model.model.layers[0]
    first.forward = lambda hidden, *args, **given: (
        hidden + 0 * type(first).forward(first, hidden, *args, **given)
    )
    run = train(model, method, ADAM, steps=8)
    run.run()
    ranks = {n: int(m.ranks[0]) for n, m in method.mine(run.model).items()}
    assert {r for n, r in ranks.items() if ".0." in n} == {1} and sum(ranks.values()) == 28
    assert max(ranks.values()) > 1


def test_new_components_move_and_the_rest_does_not() -> None:
    method = Increlora(**SHORT)
    run = train(build(), method, ADAM, steps=12)
    # after the first growth
    run.run(until=4)
    layers = method.mine(run.model)
    before = {n: {p: getattr(m, f"increlora_{p}").detach().clone() for p in "ABE"} for n, m in layers.items()}
    ranks = {n: m.ranks.tolist() for n, m in layers.items()}
    run.run(until=5)
    for name, layer in layers.items():
        active, waiting = ranks[name]
        assert (layer.increlora_E[:active] != before[name]["E"][:active]).all()
        assert torch.equal(layer.increlora_E[active:], before[name]["E"][active:])
        assert (layer.increlora_A[:active + waiting] != before[name]["A"][:active + waiting]).any(1).all()
        assert torch.equal(layer.increlora_A[active + waiting:], before[name]["A"][active + waiting:])
        assert torch.equal(layer.increlora_B[:, active + waiting:], before[name]["B"][:, active + waiting:])
        assert not layer.increlora_score.any() and layer.weight.grad is None
        moments = run.states["adamw.1"]["param"][f"{name}.increlora_A"]["exp_avg"]
        # the waiting one brings its own
        assert moments[active].any() and not moments[active + waiting:].any()
    run.run()
    assert run.row["loss"] == run.row["loss"]


# ---- export ------------------------------------------------------------------------------------------------


@KINDS
def test_fold_and_delta(kind: str, tmp_path: Path) -> None:
    method, before = Increlora(rank=2), make(kind)
    model = operated(kind, method)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    for i, layer in enumerate(method.mine(model).values()):
        layer.use(1 + i % 4, waiting=True)
    logits = moved(model)
    deltas.write(model, [method], 1, tmp_path, None)
    again = make(kind)
    assert deltas.put(again, tmp_path / "adapter") == method
    for one in (model, again, families.load(tmp_path, "test").eval()):
        assert torch.allclose(one(input_ids=IDS).logits, logits, atol=1e-4)
    name = next(iter(method.mine(again)))
    change = as_linear_weight(model.get_submodule(name)) - as_linear_weight(before.get_submodule(name))
    assert isinstance(model.get_submodule(name), type(before.get_submodule(name)))
    assert int(torch.linalg.matrix_rank(change, atol=1e-5)) <= 2 and isinstance(again, nn.Module)


@pytest.mark.parametrize(("given", "words"), [
    ({"rank": 0}, "rank and grow must be"), ({"most": 2, "rank": 4}, "no less than rank"),
    ({"every": 1.5}, "whole number of steps"), ({"beta1": 1.0}, "below 1")])
def test_bad_settings(given: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        settings(Increlora, given, "adapt")


def test_a_stage_too_short_to_grow_in_is_refused() -> None:
    with pytest.raises(UserError, match="no step of 12 is one"):
        train(build(), Increlora(begin=8, end=8), ADAM, steps=12)
