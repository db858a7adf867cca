"""RS2: how often each row is seen, epochs that differ, and a stage whose length is that of the short
epochs."""
from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.core.settings import make
from trainwright.data.order.rs2 import Rs2, subset
from trainwright.lm.fixed_rows import FixedRows


def epochs(draw: str, many: int, rows: int = 20, size: int = 5) -> list[list[int]]:
    return [subset(draw, epoch, rows, size, 0).tolist() for epoch in range(many)]


def batches(method: Rs2, ctx: Context, steps: int) -> list[Batch]:
    state = method.init(nn.Module(), ctx)
    return [method.next(pytest.fail, state, ctx) for _ in range(steps)]  # type: ignore[arg-type]


@pytest.mark.parametrize("draw", ["with_replacement", "without_replacement", "once"])
def test_no_epoch_has_a_row_twice(draw: str) -> None:
    assert all(len(set(epoch)) == size for size in (5, 7, 20) for epoch in epochs(draw, 9, size=size))


def test_without_replacement_all_are_seen_before_any_is_seen_again() -> None:
    found = epochs("without_replacement", 8)
    for turn in (found[:4], found[4:]):
        assert sorted(i for epoch in turn for i in epoch) == list(range(20))
    assert found[:4] != found[4:]


def test_a_window_that_the_rows_do_not_fill_begins_again() -> None:
    found = epochs("without_replacement", 3, size=8)
    assert set(found[2]) == set(range(20)) - set(found[0]) - set(found[1]) | set(found[0][:4])


def test_with_replacement_each_epoch_draws_from_all() -> None:
    """Over m epochs a row is seen m k / n times in the mean, with the variance of independent draws."""
    counts = Counter(i for epoch in epochs("with_replacement", 400) for i in epoch)
    assert sum(counts.values()) == 2000 and set(counts) == set(range(20))
    variance = sum((c - 100) ** 2 for c in counts.values()) / 20
    assert 75 / 3 < variance < 75 * 3                                              # 400 x 1/4 x 3/4


def test_a_static_subset_is_one_draw_in_new_orders() -> None:
    found = epochs("once", 3)
    assert set(found[0]) == set(found[1]) == set(found[2]) and found[0] != found[1]


def test_steps_follow_the_epochs(tmp_path: Path) -> None:
    """The rows of the steps are those of the epochs, one behind the other; a stage's epoch has the rows of
    a short one."""
    method, ctx = Rs2(fraction=0.3, length=32), tiny.context(tmp_path)
    rows = FixedRows(method.source.rows(ctx))
    size = method.epoch(ctx)
    assert size == round(0.3 * len(rows)) and tiny.ROWS % size
    seen = torch.cat([b["input_ids"] for b in batches(method, ctx, 6)])
    wanted = np.concatenate([subset("with_replacement", e, len(rows), size, ctx.seed)
                             for e in range(9)])[:len(seen)]
    assert torch.equal(seen, rows.batch(wanted)["input_ids"])


def test_a_row_is_the_same_text_in_every_epoch(tmp_path: Path) -> None:
    method, ctx = Rs2(fraction=1.0, draw="once", length=32), tiny.context(tmp_path)
    ctx.batch_rows = method.epoch(ctx)
    first, second = (Counter(map(tuple, b["input_ids"].tolist())) for b in batches(method, ctx, 2))
    assert first == second


def test_mistakes_are_said(tmp_path: Path) -> None:
    ctx = tiny.context(tmp_path)
    ctx.knobs = {"mixture": {"code": 1.0}}
    with pytest.raises(UserError, match="cannot follow a mixture"):
        batches(Rs2(length=32), ctx, 1)
    wrong: list[dict[str, Any]] = [{"fraction": 0.0}, {"fraction": 1.5}, {"length": 1}]
    for settings in wrong:
        with pytest.raises(UserError, match=next(iter(settings))):
            make(Rs2, settings, "here")
