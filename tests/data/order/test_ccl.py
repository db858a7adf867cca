"""Cyclical curriculum learning: sizes that follow the cycle, draws in proportion to 1 / loss, scores of
the reference."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.settings import make
from trainwright.data.order.ccl import Ccl, drawn
from trainwright.lm.fixed_rows import FixedRows


@pytest.mark.parametrize(("settings", "cycle"), [
    ((0.25, 1.0, 0.5), [0.25, 0.5, 1.0, 0.5]), ((0.3, 1.0, 0.5), [0.3, 0.6, 1.0, 0.5]),
    ((0.1, 0.5, 0.2), [0.1, 0.5]),
    ((0.2, 1.0, 0.7), [0.2, 0.2 / 0.7, 0.2 / 0.49, 0.2 / 0.343, 0.2 / 0.2401, 1.0, 0.7, 0.49, 0.343, 0.2401]),
    ((1.0, 1.0, 0.5), [1.0])])
def test_sizes_follow_the_cycle(settings: tuple[float, float, float], cycle: list[float]) -> None:
    start, end, multiplier = settings
    assert Ccl(start=start, end=end, multiplier=multiplier).sizes == pytest.approx(cycle)


def test_every_row_of_the_stage_has_its_round() -> None:
    """Of 10 rows: rounds of 2, 5, 10, 5, and again."""
    found = [Ccl().place(number, 10) for number in range(46)]
    wanted = [(turn, size, at) for turn, size in enumerate([2, 5, 10, 5, 2, 5, 10, 5][:8])
              for at in range(size)]
    assert found[:44] == wanted and found[44] == (8, 2, 0)


def test_draws_are_in_proportion_to_one_over_the_loss() -> None:
    """The first of a draw has the probability of its score; the second follows of what is left. No number
    comes twice."""
    losses = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)                    # scores 4 : 2 : 1
    rng = torch.Generator().manual_seed(0)
    one = torch.stack([drawn(losses, 1, rng) for _ in range(4000)]).flatten().bincount() / 4000
    assert torch.allclose(one, torch.tensor([4.0, 2.0, 1.0]) / 7, atol=0.03)
    pairs = [set(drawn(losses, 2, rng).tolist()) for _ in range(4000)]
    assert all(len(p) == 2 for p in pairs)
    assert sum(p == {0, 1} for p in pairs) / 4000 == pytest.approx(4 / 7 * 2 / 3 + 2 / 7 * 4 / 5, abs=0.03)


def test_a_loss_near_zero_does_not_take_every_round() -> None:
    losses, rng = torch.tensor([0.0, 1e-9, 1e-3], dtype=torch.float64), torch.Generator().manual_seed(0)
    counts = torch.stack([drawn(losses, 1, rng) for _ in range(3000)]).flatten().bincount()
    assert int(counts.min()) > 800


def test_a_row_with_nothing_to_learn_comes_last() -> None:
    losses, rng = torch.tensor([float("inf"), 5.0, 5.0],
                               dtype=torch.float64), torch.Generator().manual_seed(0)
    assert all(set(drawn(losses, 2, rng).tolist()) == {1, 2} for _ in range(50))
    assert 0 in drawn(losses, 3, rng)


def test_rows_are_scored_by_the_reference(tmp_path: Path) -> None:
    method, ctx = Ccl(length=64, batch_size=7), tiny.context(tmp_path)
    ctx.frozen["reference"] = reference = tiny.model(seed=3).eval()
    losses = method.init(tiny.model(), ctx)["shared"]["losses"]
    rows = FixedRows(method.source.rows(ctx))
    assert len(losses) == len(rows) == method.epoch(ctx)
    batch = rows.batch(np.array([8]))
    # a document at a time, without packing
    with torch.no_grad():
        total = 0.0
        for d in range(int(batch["document"].max()) + 1):
            at = batch["document"] == d
            logits = reference(input_ids=batch["input_ids"][at][None]).logits[0]
            total += float(nn.functional.cross_entropy(logits, batch["targets"][at], ignore_index=-100,
                                                       reduction="sum"))
    assert float(losses[8]) == pytest.approx(total / int((batch["targets"] != -100).sum()), rel=1e-4)


def test_a_round_is_one_pass_over_what_was_drawn(tmp_path: Path) -> None:
    method, ctx = Ccl(length=64), tiny.context(tmp_path)
    state = method.init(nn.Module(), ctx)
    n, losses = len(FixedRows(method.source.rows(ctx))), state["shared"]["losses"]
    batches = [method.next(pytest.fail, state, ctx)
               for _ in range(3 * n // tiny.ROWS)]  # type: ignore[arg-type]
    seen = torch.cat([b["input_ids"] for b in batches])
    sizes, at = [n // 4, n // 2, n], 0
    for turn, size in enumerate(sizes):
        numbers = drawn(losses, size, ctx.rng(f"ccl/{turn}", at=0)).numpy()
        wanted = FixedRows(method.source.rows(ctx)).batch(numbers)["input_ids"]
        assert torch.equal(seen[at:at + size], wanted)
        at += size
    assert ctx.notes["round_rows"][0][0] == n // 4


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"from\.reference"):
        Ccl(length=64).init(nn.Module(), Context(inputs=tiny.context(tmp_path).inputs, batch_rows=4))
    wrong: list[dict[str, Any]] = [{"start": 0.0}, {"start": 0.5, "end": 0.4}, {"multiplier": 1.0},
                                   {"batch_size": 0}]
    for settings in wrong:
        with pytest.raises(UserError, match=next(iter(settings))):
            make(Ccl, settings, "here")
