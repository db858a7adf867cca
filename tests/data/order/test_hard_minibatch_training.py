"""Hard mini-batch training: before each round the network of now ranks all mini-batches, at a cost that is
counted."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core import flops
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import UNTRAINED, Batch, Surgery
from trainwright.core.settings import make
from trainwright.data.order.hard_minibatch_training import HardMinibatchTraining
from trainwright.lm.fixed_rows import FixedRows
from trainwright.lm.losses import token_losses


def test_a_round_has_the_hardest_in_their_fixed_order() -> None:
    losses = torch.tensor([1.0, 9.0, 5.0, 7.0, 7.0, 2.0])
    assert HardMinibatchTraining(delta=0.5).hardest(losses).tolist() == [1, 3, 4]
    assert HardMinibatchTraining(delta=0.4).hardest(losses).tolist() == [1, 3]
    assert HardMinibatchTraining(delta=0.01).hardest(losses).tolist() == [1]


def test_with_all_of_them_it_is_ordinary_training(tmp_path: Path) -> None:
    method = HardMinibatchTraining(length=64, delta=1.0)
    run = tiny.stage(method, tmp_path)
    many, seen = method.minibatches(run.ctx), []
    for _ in range(many + 1):
        run.run(until=run.ctx.step + 1)
        shared = run.states["hard_minibatch_training.1"]["shared"]
        seen.append(int(shared["round"][shared["at"] - 1]))
        assert run.ctx.apart == 0, "nothing is ranked"
    assert seen == [*range(many), 0]


class Watching(Train):
    """A loop that keeps its batches."""

    def build(self, journal: Sequence[tuple[int, Surgery]] = ()) -> None:
        self.seen: list[Batch] = []
        super().build(journal)

    def pull(self) -> Batch:
        self.seen.append(super().pull())
        return self.seen[-1]


def by_hand(model: nn.Module, batch: Batch) -> float:
    """The mean cross-entropy of a mini-batch's targets, each document read alone."""
    total, count = 0.0, 0
    starts = (batch["position_ids"] == 0).long()
    for ids, targets, new in zip(batch["input_ids"], batch["targets"], starts, strict=True):
        for document in range(int(new.sum())):
            mine = new.cumsum(0) == document + 1
            logits = model(input_ids=ids[mine][None]).logits[0]
            total += float(nn.functional.cross_entropy(
                logits, targets[mine], ignore_index=UNTRAINED, reduction="sum"))
            count += int((targets[mine] != UNTRAINED).sum())
    return total / count


@pytest.mark.slow
def test_each_round_is_what_the_network_of_now_finds_hardest(tmp_path: Path) -> None:
    method = HardMinibatchTraining(length=64)
    run = tiny.stage(method, tmp_path, train=Watching)
    assert isinstance(run, Watching)
    many = method.minibatches(run.ctx)
    for number in range(2):
        run.run(until=number * (many // 2))
        with torch.no_grad():
            losses = [by_hand(run.model.eval(), method.minibatch(i, run.ctx)) for i in range(many)]
        hardest = sorted(sorted(range(many), key=lambda i: -losses[i])[:many // 2])
        run.seen.clear()
        run.run(until=(number + 1) * (many // 2))
        assert many >= 4 and run.states["hard_minibatch_training.1"]["shared"]["round"].tolist() == hardest
        for batch, i in zip(run.seen, hardest, strict=True):
            assert torch.equal(batch["input_ids"], method.minibatch(i, run.ctx)["input_ids"])


def small(delta: float, tmp_path: Path) -> tuple[HardMinibatchTraining, Train]:
    """A stage with steps of one short row, and a rate at which it learns in one epoch."""
    method = HardMinibatchTraining(length=16, domains=("prose",), delta=delta)
    others = tiny.default("Objective"), tiny.default("Optimizer", lr=1e-2)
    run = tiny.built([method, *others], tmp_path)
    run.ctx.batch_rows, run.steps, run.ctx.steps = 1, 10_000, 10_000
    return method, run


@pytest.mark.slow
def test_picks_are_spread_over_the_epoch(tmp_path: Path) -> None:
    """The losses of an epoch's own steps fall as it learns, and nine in ten of the highest are of its first
    half; the network of now prefers no half."""
    method, run = small(1.0, tmp_path)
    many, falling = method.minibatches(run.ctx), list[float]()
    run.run(until=many, on_step=lambda row: falling.append(row["loss"]))
    stale = torch.tensor(falling).topk(many // 2).indices
    assert many >= 20 and float((stale < many / 2).double().mean()) > 0.85
    state = run.states["hard_minibatch_training.1"]
    HardMinibatchTraining(length=16, domains=("prose",)).next(
        pytest.fail, state, run.ctx)  # type: ignore[arg-type]
    picked = state["shared"]["round"]
    assert len(picked) == many // 2 and 0.3 < float((picked < many / 2).double().mean()) < 0.7


@pytest.mark.slow
def test_the_pass_is_counted_exactly(tmp_path: Path) -> None:
    """In the ledger are the FLOPs of the steps and a forward pass over all mini-batches before each round,
    whichever steps are counted; tokens are those of the steps."""
    costs, apart = {}, list[float]()
    for delta in (1.0, 0.5):
        method, run = small(delta, tmp_path)
        many, run.count_flops = method.minibatches(run.ctx), True
        run.run(until=many, on_step=lambda row, ctx=run.ctx: apart.append(ctx.apart))
        costs[delta] = run.ledger.flops
        assert run.ledger.tokens == many * run.ctx.batch_rows * 16
    with torch.no_grad(), flops.counting() as forward:
        for i in range(many):
            token_losses(run.model, method.minibatch(i, run.ctx), run.ctx)
    rounds = -(-many // (many // 2))
    assert [x for x in apart if x] == [forward.flops] * rounds and not apart[many - 1]
    assert costs[0.5] == pytest.approx(costs[1.0] + rounds * forward.flops, rel=0.02), "rows differ a little"


def test_another_number_of_rows_begins_anew(tmp_path: Path) -> None:
    method, ctx = HardMinibatchTraining(length=32), tiny.context(tmp_path)
    state = method.init(tiny.model(), ctx)
    method.next(pytest.fail, state, ctx)  # type: ignore[arg-type]
    ctx.batch_rows = 4
    assert len(method.next(pytest.fail, state, ctx)["input_ids"]) == 4  # type: ignore[arg-type]
    assert state["shared"]["at"] == 1 and len(state["shared"]["round"]) == method.minibatches(ctx) // 2


def test_an_epoch_is_as_many_steps_as_ordinary_training_has(tmp_path: Path) -> None:
    method, ctx = HardMinibatchTraining(length=32, delta=0.1), tiny.context(tmp_path)
    assert method.epoch(ctx) == len(FixedRows(method.source.rows(ctx))) // tiny.ROWS * tiny.ROWS


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a step has 100000"):
        large = Context(inputs=tiny.context(tmp_path).inputs, batch_rows=100_000)
        HardMinibatchTraining(length=32).minibatches(large)
    for delta in (0.0, 1.5):
        with pytest.raises(UserError, match="delta"):
            make(HardMinibatchTraining, {"delta": delta}, "here")
