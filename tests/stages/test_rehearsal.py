"""What is counted before the first step, and on how many rows."""
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Objective
from trainwright.stages._rehearsal import COUNTED, rehearse


class Rehearsed:
    """A run that multiplies a matrix for each of its rows, and keeps how many rows it was given."""

    def __init__(self, batch: Batch, accumulate: int = 1, compiled: bool = True, least: int = 1) -> None:
        self.ctx = Context(seed=0)
        self.ctx.compile = compiled
        self.batch, self.accumulate, self.least = batch, accumulate, least
        self.states: dict[str, Any] = {"objective": {}}
        self.ledger = SimpleNamespace(flops_per_token=0.0)
        self.given: list[int] = []

    def of(self, place: type) -> list[tuple[str, Any]]:
        counted = SimpleNamespace(count=lambda b: int((b["targets"] != UNTRAINED).sum()))
        return [("objective", counted)] if place is Objective else []

    def pull(self) -> Batch:
        return self.batch

    def gradients(self, batches: list[Batch]) -> None:
        assert not self.ctx.compile
        rows = len(batches[0]["input_ids"])
        if rows < self.least:
            raise UserError("it takes more rows")
        self.given.append(rows)
        torch.ones(rows, 3) @ torch.ones(3, 5)


def batch(rows: int, tokens: int, trained: int | None = None) -> Batch:
    """Only in one row is something to learn where ``trained`` says which."""
    ids = torch.ones(rows, tokens, dtype=torch.long)
    targets = ids.clone()
    if trained is not None:
        targets[torch.arange(rows) != trained] = UNTRAINED
    return {"input_ids": ids, "targets": targets}


@pytest.mark.parametrize(
    ("rows", "tokens", "accumulate", "counted"),
    [(64, 128, 1, 4), (64, 128, 4, 4), (8, 1024, 1, 1), (2, 128, 1, 2), (6, 512, 1, 3), (7, 512, 1, 7)],
)
def test_some_rows_are_counted_and_not_a_whole_micro_batch(rows, tokens, accumulate, counted):
    run = Rehearsed(batch(rows, tokens), accumulate)
    rehearse(run, print)
    assert run.given == [counted] and (counted * tokens <= COUNTED or counted % 2 or counted == 1)
    assert run.ledger.flops_per_token == 2 * 3 * 5 / tokens and run.ctx.compile


def test_rows_with_nothing_to_learn_are_not_those_that_are_counted():
    run = Rehearsed(batch(64, 128, trained=37))
    rehearse(run, print)
    assert run.given == [4]
    nothing = Rehearsed(batch(64, 128) | {"targets": torch.full((64, 128), UNTRAINED)})
    rehearse(nothing, print)
    assert nothing.given == [64], "the run itself says what is wrong"


def test_an_objective_that_looks_at_several_rows_has_all_of_them():
    run = Rehearsed(batch(64, 128), least=8)
    rehearse(run, print)
    assert run.given == [64]


def test_nothing_is_counted_that_is_no_token_or_not_compiled():
    pictures = Rehearsed({"pixels": torch.ones(4, 3), "targets": torch.ones(4, 1)})
    rehearse(pictures, print)
    eager = Rehearsed(batch(64, 128), compiled=False)
    rehearse(eager, print)
    assert pictures.given == eager.given == [] and not pictures.ledger.flops_per_token
