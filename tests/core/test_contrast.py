"""An objective that contrasts the rows of a step: no cut of the step changes its gradient."""
from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainwright.core import sharding
from trainwright.core.batches import cut
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Data, Objective, State, Weigh
from trainwright.optim.adamw import Adamw

ROWS = 8


class Net(nn.Module):
    """Two encoders and a scale, which is a scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Linear(6, 8), nn.Dropout(0.2), nn.Linear(8, 4)) for _ in range(2))
        self.scale = nn.Parameter(torch.tensor(1.0))


def encoded(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return model.a(x), model.b(y)


class Pairs(Data):
    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        g = ctx.rng("pairs")
        return {n: torch.randn(ROWS, 6, generator=g)[ctx.rows(ROWS)] for n in ("x", "y")}


class Contrast(Objective):
    contrasts = True

    def count(self, batch: Batch) -> float:
        return len(batch["x"])

    def represent(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Batch:
        return dict(zip("xy", sharding.within(model, encoded, batch["x"], batch["y"]), strict=True))

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        logits = sharding.within(model, lambda model: model.scale.clone()) * batch["x"] @ batch["y"].T
        return F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")


class Near(Objective):
    """An ordinary one, beside it."""

    def count(self, batch: Batch) -> float:
        return 2 * len(batch["x"])

    def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
        x, y = sharding.within(model, encoded, batch["x"], batch["y"])
        return (x - y).pow(2).sum(1)


class ByFirst(Weigh):
    """A weight that follows from the row."""

    def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
        return batch["x"][:, 0].exp()


class ByRank(Weigh):
    """A weight that needs the whole step."""

    whole = True

    def weigh(self, values: Tensor, batch: Batch, state: State, ctx: Context) -> Tensor:
        return values.argsort().argsort().float()


def train(*methods: object) -> Train:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net()
    run = Train(model, [Pairs(), *methods, Adamw(weight_decay=0.0)], 3)  # type: ignore[list-item]
    run.build()
    return run


def still(run: Train) -> Train:
    """Without dropout, which is drawn for each micro-batch."""
    run.model.eval()
    run.model.train = lambda mode=True: run.model  # type: ignore[method-assign]
    return run


@pytest.mark.parametrize(
    "more", [(), (Near(weight=0.3),), (ByFirst(),), (ByRank(),), (Near(), ByFirst(), ByRank())])
@pytest.mark.parametrize("parts", [1, 2, 8])
def test_the_gradient_is_that_of_the_step_however_it_is_cut(more: tuple[object, ...], parts: int) -> None:
    run = still(train(Contrast(weight=2.0), *more))
    batch = run.pull()
    found = run.gradients(cut(batch, parts))
    contrast, near = Contrast(), Near()
    values = contrast.loss(run.model, contrast.represent(run.model, batch, {}, run.ctx), {}, run.ctx)
    terms = [(values, 2.0 / ROWS)]
    for objective in (m for m in more if isinstance(m, Near)):
        terms.append((near.loss(run.model, batch, {}, run.ctx), objective.weight / (2 * ROWS)))
    raws = [v.detach() for v, _ in terms]
    for weigh in (m for m in more if isinstance(m, Weigh)):
        weights = [weigh.weigh(raw, batch, {}, run.ctx) for raw in raws]
        terms = [(v * by, w) for (v, w), by in zip(terms, weights, strict=True)]
    loss = sum((v.sum() * w for v, w in terms), torch.zeros(()))
    wanted = torch.autograd.grad(loss, list(run.params.values()))
    for (name, grad), right in zip(found.items(), wanted, strict=True):
        assert torch.allclose(grad, right, rtol=1e-4, atol=1e-6), name


def test_what_is_computed_twice_has_the_same_dropout() -> None:
    run = train(Contrast())
    batch = run.pull()
    halves = run.gradients(cut(batch, 2))
    objective, parts = Contrast(), []
    for i, half in enumerate(cut(batch, 2)):
        with run.randomness(i):
            parts.append(objective.represent(run.model, half, {}, run.ctx))
    every = {n: torch.cat([part[n] for part in parts]) for n in ("x", "y")}
    objective.loss(run.model, every, {}, run.ctx).mean().backward()
    for name, parameter in run.params.items():
        assert torch.allclose(halves[name], parameter.grad, atol=1e-6), name  # type: ignore[arg-type]


@pytest.mark.parametrize("parts", [1, 2])
def test_an_update_may_ask_for_its_gradients_again(parts: int) -> None:
    """As it does in the chain, where no graph is made."""
    run = still(train(Contrast()))
    batches = cut(run.pull(), parts)
    once = run.gradients(batches)
    with torch.no_grad():
        again = run.gradients(batches)
    assert all(torch.equal(grad, again[name]) for name, grad in once.items())


def test_an_encoder_may_be_frozen() -> None:
    run = train(Contrast())
    run.model.b.requires_grad_(False)
    run.refresh()
    grads = run.gradients(cut(run.pull(), 2))
    assert any(n.startswith("a.") for n in grads) and not any(n.startswith("b.") for n in grads)


def test_the_loss_of_the_row_is_that_of_the_step() -> None:
    run = still(train(Contrast()))
    batch = run.pull()
    objective = Contrast()
    values = objective.loss(run.model, objective.represent(run.model, batch, {}, run.ctx), {}, run.ctx)
    run.step()
    assert run.row["loss"] == pytest.approx(float(values.mean().detach()), rel=1e-5)


def test_a_number_for_each_row_is_asked_for() -> None:
    class Lump(Contrast):
        def loss(self, model: nn.Module, batch: Batch, state: State, ctx: Context) -> Tensor:
            return super().loss(model, batch, state, ctx).sum()[None]
    with pytest.raises(UserError, match=r"^lump\.1 contrasts the rows of a step and must give a number"):
        train(Lump()).step()
