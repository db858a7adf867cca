"""The pull back to the start: its gradient by hand, and the Fisher information of a tiny model by hand."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.check import tiny
from trainwright.core import checkpoint
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.data.order.pack import Pack
from trainwright.finetune.classifier import Classifier
from trainwright.finetune.rehearsal_free_cl import RehearsalFreeCl

W0 = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0], [2.0, 2.0, -1.0]])


def pulled(method: RehearsalFreeCl, now: Tensor, leaves: dict[str, Tensor], grad: Tensor) -> Tensor:
    with torch.no_grad():
        return method.update({"w": grad}, {"w": now}, {"param": {"w": leaves}}, Context())["w"]


def test_l2_adds_the_gradient_of_its_penalty() -> None:
    now, grad = torch.full((3, 3), 2.0), torch.eye(3)
    # I + 2 / 4 (w - w0)
    expected = torch.tensor([[1 + 0.5, 2.0, 0.75], [1.0, 1 - 0.5, 0.5], [0.0, 0.0, 1 + 1.5]])
    assert torch.equal(pulled(RehearsalFreeCl(strength=0.25), now, {"start": W0}, grad), expected)
    assert torch.equal(pulled(RehearsalFreeCl(strength=0.25), W0.clone(), {"start": W0}, grad), grad)


def test_ewc_adds_the_gradient_of_its_penalty() -> None:
    """2 s F (w - w0), held against what autograd makes of s sum F (w - w0)^2."""
    draw = torch.Generator().manual_seed(0)
    now, fisher, grad = (torch.rand(3, 3, generator=draw) for _ in range(3))
    w = now.clone().requires_grad_()
    (7.0 * (fisher * (w - W0) ** 2).sum()).backward()
    method = RehearsalFreeCl(how="ewc", old=("prose",), strength=7.0)
    assert torch.allclose(pulled(method, now, {"start": W0, "fisher": fisher}, grad), grad + w.grad)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_the_fisher_information_by_hand(kind: str, tmp_path: Path) -> None:
    """The mean over rows of the squared gradient of a row's mean loss, from the model's own logits;
    domains are the old ones."""
    model, ctx = tiny.model(kind), tiny.context(tmp_path, kind)
    ctx.batch_rows = 3
    method = RehearsalFreeCl(how="ewc", old=("prose",), fisher_rows=3, length=24, outside=True)
    found = method.init(model, ctx)["param"]
    data = Pack(length=24, domains=("prose",))
    batch = data.next(pytest.fail, data.init(model, ctx), ctx)
    expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for r in range(3):
        logits = model.eval()(
            input_ids=batch["input_ids"][r : r + 1], position_ids=batch["position_ids"][r : r + 1]
        ).logits[0]
        loss = F.cross_entropy(logits, batch["targets"][r], ignore_index=-100)
        for n, g in zip(expected, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            expected[n] += g.square() / 3
    assert found.keys() == expected.keys() and all(
        torch.equal(found[n]["start"], p) for n, p in model.named_parameters()
    )
    for n, f in expected.items():
        assert torch.allclose(found[n]["fisher"], f, rtol=1e-3, atol=1e-9), n
    assert all(p.grad is None for p in model.parameters())


def test_it_holds_the_weights_near_the_start(tmp_path: Path) -> None:
    """A chain with it before the optimizer: a strong pull leaves the weights nearer, and ``params``
    leaves the others free."""
    from trainwright.core.loop import Train
    from trainwright.optim.adamw import Adamw
    from trainwright.pretrain.next_token import NextToken

    def moved(*more: RehearsalFreeCl) -> dict[str, float]:
        model, start = tiny.model(), dict(tiny.model().named_parameters())
        methods = [Pack(length=32), NextToken(), *more, Adamw(lr=1e-2, weight_decay=0.0)]
        run = Train(model, methods, 6, ctx=tiny.context(tmp_path))
        run.run()
        assert not more or run.row["distance"] > 0
        return {n: float((p - start[n]).detach().norm()) for n, p in run.params.items()}

    free, held = moved(), moved(RehearsalFreeCl(strength=10.0, params="*self_attn*"))
    near = [held[n] < free[n] / 2 for n in free if "self_attn" in n]
    others = [held[n] > free[n] / 2 for n in free if "self_attn" not in n]
    assert near and all(near) and others and all(others)


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_embeddings_and_heads_are_not_held(kind: str) -> None:
    model = tiny.model(kind)
    Classifier(classes=("a", "b")).operate(model, Context())
    every = {n for n, _ in model.named_parameters()}
    held = set(RehearsalFreeCl().init(model, Context())["param"])
    free = every - held
    assert free and all("embed" in n or "wte" in n or "wpe" in n or "head" in n for n in free)
    assert not any("embed" in n or "wte" in n or "wpe" in n or "head" in n for n in held)
    assert set(RehearsalFreeCl(outside=True).init(model, Context())["param"]) == every
    with pytest.raises(UserError, match="say outside = true"):
        RehearsalFreeCl(params="class_head*").init(model, Context())


def test_fisher_information_is_a_sum_over_tasks(tmp_path: Path) -> None:
    """Three stages one after another, each with what the one before had gathered in its last snapshot."""
    method = RehearsalFreeCl(how="ewc", old=("prose",), fisher_rows=2, length=24)
    model, ctx = tiny.model(), tiny.context(tmp_path)
    alone = summed = method.init(model, ctx)["param"]
    for number in (2.0, 3.0):
        run = tiny.stage(method, tmp_path, saved=None)
        run.states["rehearsal_free_cl.1"]["param"] = {
            n: {leaf: t.clone() for leaf, t in leaves.items()} for n, leaves in summed.items()
        }
        saved = tmp_path / f"first-{number:g}"
        saved.mkdir()
        checkpoint.save(run, saved, {}).rename(saved / checkpoint.STATE)
        ctx.inputs["earlier"], ctx.frozen["earlier"] = [saved], tiny.model()
        summed = method.init(model, ctx)["param"]
        assert "earlier" not in ctx.frozen
        for n, leaves in summed.items():
            assert torch.allclose(leaves["fisher"], number * alone[n]["fisher"], rtol=1e-5), n
            assert torch.equal(leaves["start"], model.get_parameter(n))
    with pytest.raises(UserError, match='how = "ewc" alone'):
        RehearsalFreeCl().init(model, ctx)
    with pytest.raises(UserError, match="has gathered no Fisher"):
        RehearsalFreeCl(how="ewc", old=("prose",), fisher_rows=2, length=24).init(
            tiny.model(tiny.GPT2), ctx
        )


def test_ewc_needs_old_data_and_says_so(tmp_path: Path) -> None:
    method = RehearsalFreeCl(how="ewc", old=("prose",))
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r"from = \{ data ="):
        method.init(model, Context(folder=tmp_path))
    # before there is a corpus: only the size counts
    planned = method.init(model, Context())["param"]["weight"]
    assert planned["fisher"].shape == planned["start"].shape == (2, 2)


@pytest.mark.parametrize(
    "wrong", [{"how": "ewc"}, {"old": ["prose"]}, {"strength": -1.0}, {"fisher_rows": 0}]
)
def test_settings_that_make_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"old|strength|fisher_rows"):
        make(RehearsalFreeCl, wrong, "here")
