"""IncreLoRA: ranks rise to the budget exactly, where importance says, and a component in use
brings what it has learned."""

from __future__ import annotations

import dataclasses
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
from trainwright.finetune.increlora import QUIET, WAITING, Increlora, allocate, remember
from trainwright.finetune.lora import Lora
from trainwright.lm.layers import as_linear_weight
from trainwright.optim.adamw import Adamw

KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
ADAM = Adamw(lr=1e-2, weight_decay=0.0)
SHORT = {"rank": 3, "begin": 2, "end": 8, "every": 2}


def operated(kind: str, method: Increlora):
    model = make(kind)
    method.operate(model, Context(seed=1))
    return model


def grow(model, method: Increlora, names: list[str]) -> None:
    """What the method asks for when these layers are the most important."""
    dataclasses.replace(method, grown=tuple(names)).operate(model, Context(seed=1))


# ---- the addition ------------------------------------------------------------------------------------------


def test_formula_by_hand() -> None:
    """Two in use, two wait: s = 6 / (2 + 1e-5), and those that wait count with 1e-5."""
    method = Increlora(rank=3, grow=2, alpha=6.0, layers="*.0.mlp.up_proj")
    plain, model = make("llama").model.layers[0].mlp.up_proj, operated("llama", method)
    layer = model.model.layers[0].mlp.up_proj
    assert (layer.active, layer.made, layer.used) == (1, 3, 3) and layer.increlora_E[0].tolist() == [0]
    grow(model, method, ["model.layers.0.mlp.up_proj"])
    assert (layer.active, layer.made, layer.used) == (2, 4, 4) and layer.increlora_E[1].item() == (
        pytest.approx(WAITING)
    )
    layer.increlora_E[0].data.fill_(2.0)
    layer.increlora_E[1].data.fill_(-1.0)
    x, (A, B) = torch.randn(2, 5, 32), [t.detach() for t in layer.factors()]
    s = torch.tensor([2.0, -1.0, WAITING, WAITING])
    y = layer(x)
    assert torch.allclose(y, plain(x) + x @ (6 / (2 + 1e-5) * (B * s) @ A).T, atol=1e-6)
    y.square().sum().backward()
    assert all(E.grad.all() for E in layer.increlora_E)
    assert all(A.grad.any(1).all() for A in layer.increlora_A)


def test_what_still_waits_when_the_budget_is_spent_leaves_the_sum_and_is_frozen() -> None:
    method = Increlora(rank=2, grow=2, layers="*.0.mlp.*")
    model = operated("llama", method)
    up, gate, down = (f"model.layers.0.mlp.{n}_proj" for n in ("up", "gate", "down"))
    grow(model, method, [up, up, gate])
    one, two, three = (model.get_submodule(n) for n in (up, gate, down))
    assert [m.active for m in (one, two, three)] == [3, 2, 1] == [m.used for m in (one, two, three)]
    x = torch.randn(2, 5, 32)
    values = two.values().detach()
    assert len(values) == 2 and values[1].item() == pytest.approx(
        WAITING * 16 / 2, rel=1e-4
    )
    two.increlora_E[0].data.fill_(1.0)
    (one(x) + two(x)).square().sum().backward()
    one_in_use, one_of_two = two.increlora_A
    assert one_in_use.grad.any() and one_of_two.grad.any(1).tolist() == [True, False]
    assert three.blocks == 1 and not three.increlora_B[1].requires_grad
    assert one.increlora_score.grad is None and not one.increlora_score.requires_grad


def test_score_is_that_of_the_whole_increment_row_by_row() -> None:
    method = Increlora(rank=2, layers="*.0.mlp.up_proj")
    model = operated("llama", method)
    layer = model.model.layers[0].mlp.up_proj
    layer.increlora_E[0].data.fill_(3.0)
    x, g = torch.randn(4, 6, 32), torch.randn(4, 6, 48)
    layer(x).backward(g)
    A, B = layer.factors()
    dW = (B * layer.values()) @ A
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


@pytest.mark.slow
@pytest.mark.parametrize(("grow", "rank"), [(1, 3), (2, 3), (3, 2)])
def test_the_budget_is_met_exactly_and_never_overshot(grow: int, rank: int) -> None:
    method = Increlora(**SHORT | {"rank": rank, "grow": grow})
    run = train(build(), method, ADAM, steps=12)
    layers, totals = method.mine(run.model), []
    for step in range(1, 13):
        run.run(until=step)
        ranks = {n: m.active for n, m in layers.items()}
        totals.append(sum(ranks.values()))
    steps = [14 + round((rank - 1) * 14 * i / 3) for i in (1, 2, 3)]
    # a growth is decided after a step and happens before the next
    assert totals == [14] * 4 + [steps[0]] * 2 + [steps[1]] * 2 + [14 * rank] * 4
    assert all(m.used == m.active and not m.scored for m in layers.values())
    assert run.states["increlora.1"]["shared"]["ranks"] == ranks


@pytest.mark.slow
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
    ranks = {n: m.active for n, m in method.mine(run.model).items()}
    assert {r for n, r in ranks.items() if ".0." in n} == {1} and sum(ranks.values()) == 28
    assert max(ranks.values()) > 1


def trained(run) -> int:
    return sum(p.numel() for p in run.model.parameters() if p.requires_grad)


@pytest.mark.slow
@pytest.mark.parametrize("grow", [1, 2])
def test_what_is_trained_and_stored_is_that_of_lora_and_one_reserve(grow: int) -> None:
    """At the start as a LoRA of rank 1 + grow, in the end as one of the average rank: never room for more."""
    method, sizes = Increlora(**SHORT | {"grow": grow}), {}
    for rank in (1 + grow, 3):
        sizes[rank] = trained(train(build(), Lora(rank=rank), ADAM))
    run = train(build(), method, ADAM, steps=12)
    layers = method.mine(run.model).values()
    # one E and one score a layer more
    assert trained(run) == sizes[1 + grow] + 2 * 14
    run.run(until=5)
    size = [m.in_features + m.out_features for m in layers]
    ranks = [m.active for m in layers]
    assert sum(ranks) == 14 + round(2 * 14 / 3)
    assert trained(run) == sum((r + grow) * n + r + 1 for r, n in zip(ranks, size, strict=True))
    run.run()
    ranks = [m.active for m in layers]
    assert sum(ranks) == 3 * 14
    blocks = [sum(len(A) for A in [*m.increlora_A][:m.blocks]) for m in layers]
    assert trained(run) == sum(b * n + r for b, r, n in zip(blocks, ranks, size, strict=True))
    if grow == 1:
        assert blocks == ranks
    stored = sum(
        leaf.numel()
        for leaves in run.states["adamw.1"]["param"].values()
        for part, leaf in leaves.items()
        if part != "step"
    )
    assert stored == 2 * trained(run)


def test_each_component_has_an_age_of_its_own() -> None:
    """The first step of a new component, and of a singular value that has waited, is a full learning rate."""
    method = Increlora(**SHORT, orthogonality=0.0)
    run = train(build(), method, ADAM, steps=12)
    run.run(until=4)
    layers = method.mine(run.model)
    before = {n: (m.active, m.made) for n, m in layers.items()}
    run.run(until=5)
    seen = 0
    for name, layer in layers.items():
        active, made = before[name]
        if layer.active == active:
            continue
        seen += 1
        E = layer.increlora_E[-1].detach()
        assert (E - WAITING).abs().item() == pytest.approx(1e-2, rel=1e-2)
        ages = {p: run.states["adamw.1"]["param"][f"{name}.increlora_{p}"]["step"].item()
                for p in ("E.0", "E.1", "A.0", "A.2", "B.2")}
        assert ages == {"E.0": 5, "E.1": 1, "A.0": 5, "A.2": 1, "B.2": 1} and layer.made == made + 1
    assert seen == round(2 * 14 / 3)


@pytest.mark.slow
def test_new_components_move() -> None:
    method = Increlora(**SHORT)
    run = train(build(), method, ADAM, steps=12)
    run.run(until=5)
    before = {n: p.detach().clone() for n, p in run.params.items() if "increlora" in n}
    assert any(".increlora_A.2" in n for n in before)
    run.run(until=6)
    after = dict(run.model.named_parameters())
    for name, p in before.items():
        assert ("score" in name) == torch.equal(after[name], p)
    run.run()
    assert run.row["loss"] == run.row["loss"] and run.row["rank"] == 3


# ---- export ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 3])
@KINDS
def test_fold_and_delta(kind: str, budget: int, tmp_path: Path) -> None:
    """With components that wait, and, where the budget is spent, without any."""
    method, before = Increlora(rank=2), make(kind)
    model = operated(kind, method)
    assert torch.allclose(model(input_ids=IDS).logits, before(input_ids=IDS).logits, atol=1e-6)
    grow(model, method, [n for i, n in enumerate(method.mine(model)) for _ in range(i % budget)])
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
