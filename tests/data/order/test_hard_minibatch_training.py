"""Hard mini-batch training: all mini-batches once, then rounds of the hardest by the loss that each had
when last trained on."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Batch, Surgery
from trainwright.core.settings import make
from trainwright.data.order.hard_minibatch_training import HardMinibatchTraining
from trainwright.lm.fixed_rows import FixedRows, shuffled

EASY_LATER = {0: [2.0, 1.0], 1: [4.0, 0.1], 2: [3.0, 2.5], 3: [5.0, 0.2]}
"""Losses of four mini-batches at their first and second turn."""


def of_four(delta: float, tmp_path: Path, steps: int) -> list[int]:
    """Which mini-batch each step has, where there are four with those losses."""
    method, ctx = HardMinibatchTraining(length=32, delta=delta), tiny.context(tmp_path)
    ctx.batch_rows = len(FixedRows(method.source.rows(ctx))) // 4
    state, notes = method.init(tiny.model(), ctx), dict[str, float]()
    first: list[Batch] = []
    found: list[int] = []
    for step in range(steps):
        assert not list(method.tick(View(step, steps, notes, {}), state))
        batch: Batch = method.next(pytest.fail, state, ctx)  # type: ignore[arg-type]
        first += [batch] if step < 4 else []
        found.append(next(i for i, b in enumerate(first) if torch.equal(b["input_ids"], batch["input_ids"])))
        notes = {"loss": EASY_LATER[found[-1]][min(1, found[:-1].count(found[-1]))]}
    return found


def test_rounds_by_hand(tmp_path: Path) -> None:
    """After the first epoch 1 and 3 are the hardest; then both are easy, and 0 and 2 come, of whom the
    first losses are known."""
    assert of_four(0.5, tmp_path, 10) == [0, 1, 2, 3, 1, 3, 0, 2, 0, 2]


def test_with_all_of_them_it_is_ordinary_training(tmp_path: Path) -> None:
    assert of_four(1.0, tmp_path, 9) == [0, 1, 2, 3, 0, 1, 2, 3, 0]


def test_a_round_has_the_hardest_in_their_fixed_order() -> None:
    losses = torch.tensor([1.0, 9.0, 5.0, 7.0, 7.0, 2.0])
    assert HardMinibatchTraining(delta=0.5).hardest(losses).tolist() == [1, 3, 4]
    assert HardMinibatchTraining(delta=0.4).hardest(losses).tolist() == [1, 3]
    assert HardMinibatchTraining(delta=0.01).hardest(losses).tolist() == [1]


class Watching(Train):
    """A loop that keeps its batches."""

    def build(self, journal: Sequence[tuple[int, Surgery]] = ()) -> None:
        self.seen: list[Batch] = []
        super().build(journal)

    def pull(self) -> Batch:
        self.seen.append(super().pull())
        return self.seen[-1]


def test_a_run_repeats_what_its_own_steps_found_hardest(tmp_path: Path) -> None:
    method = HardMinibatchTraining(length=64)
    run = tiny.stage(method, tmp_path, train=Watching)
    assert isinstance(run, Watching)
    rows, many = FixedRows(method.source.rows(run.ctx)), method.minibatches(run.ctx)
    order, losses = shuffled(len(rows), run.ctx.seed, method.name), list[float]()
    run.run(until=many + many // 2, on_step=lambda row: losses.append(row["loss"]))
    hardest = sorted(sorted(range(many), key=lambda i: -losses[i])[:many // 2])
    assert many >= 3 and run.states["hard_minibatch_training.1"]["shared"]["round"].tolist() == hardest
    for batch, i in zip(run.seen, [*range(many), *hardest], strict=True):
        wanted = rows.batch(order[i * tiny.ROWS:(i + 1) * tiny.ROWS])
        assert torch.equal(batch["input_ids"], wanted["input_ids"])


def test_another_number_of_rows_begins_anew(tmp_path: Path) -> None:
    method, ctx = HardMinibatchTraining(length=32), tiny.context(tmp_path)
    state = method.init(tiny.model(), ctx)
    method.next(pytest.fail, state, ctx)  # type: ignore[arg-type]
    ctx.batch_rows = 4
    assert len(method.next(pytest.fail, state, ctx)["input_ids"]) == 4  # type: ignore[arg-type]
    assert state["shared"]["at"] == 1 and len(state["shared"]["losses"]) == method.minibatches(ctx)


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
