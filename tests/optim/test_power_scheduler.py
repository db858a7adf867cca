"""The power scheduler: the paper's formula and its own example, and a rate that knows neither the batch nor
the end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context, View
from trainwright.core.errors import UserError
from trainwright.core.method import Set
from trainwright.core.settings import make
from trainwright.optim.adamw import Adamw
from trainwright.optim.mup import Mup
from trainwright.optim.power_scheduler import PowerScheduler


def rates(method: PowerScheduler, steps: int, rows: int, tokens: int, lr: float) -> list[float]:
    """The learning rate at each step of a run."""
    state = method.init(nn.Module(), Context(steps=steps, batch_rows=rows, row_tokens=tokens, peak_lr=lr))
    knob, seen = 1.0, []
    for step in range(steps):
        for command in method.tick(View(step, steps, {}, {"lr": knob}), state):
            assert isinstance(command, Set) and command.knob == "lr"
            knob = command.value
        seen.append(lr * knob)
    return seen


def test_the_formula_by_hand() -> None:
    """b = -1/2, two sequences a step: 2 a / sqrt(n), capped by lr; warm-up to power(n_W), decay from
    power(n_D)."""
    method = PowerScheduler(a=1.0, b=-0.5, warmup=2, decay=2, sequence=50)
    at = [min(0.15, 2 / math.sqrt(100 * step)) if step else 0.15 for step in range(9)]
    assert at[1] == 0.15 and at[4] == pytest.approx(0.1)
    half = (math.exp(0.5) - 1) / (math.e - 1)
    expected = [at[2] / 2, at[2], at[2], at[3], at[4], at[5], at[6], half * at[6]]
    assert rates(method, 8, 2, 50, 0.15) == pytest.approx(expected)


def test_the_paper_s_own_example() -> None:
    """10 trillion tokens and a batch of 1024 sequences give 0.0011, with the fitted 4.6 T^-0.51."""
    method = PowerScheduler(a=4.6, warmup=0, decay=0, before=1e13)
    assert rates(method, 1, 1024, 4096, 0.02)[0] == pytest.approx(0.0011, rel=0.02)


def test_neither_the_end_nor_the_batch_is_in_it() -> None:
    """A longer run takes the same rates, and twice the batch twice the rate after the same tokens: rate /
    batch is one curve."""
    method = PowerScheduler(warmup=0, decay=0)
    short, long = rates(method, 40, 8, 4096, 1.0), rates(method, 80, 8, 4096, 1.0)
    double = rates(method, 20, 16, 4096, 1.0)
    assert short == long[:40] and [2 * r for r in short[2::2]] == pytest.approx(double[1:])
    later = rates(PowerScheduler(warmup=0, decay=0, before=20 * 8 * 4096), 20, 8, 4096, 1.0)
    assert later == pytest.approx(short[20:])


def test_below_the_cap_it_is_constant_and_it_decays_to_nothing() -> None:
    """Published constants, 16 sequences: the cap of 0.02 holds until 7.4 million tokens, as the paper's
    formula has it."""
    knee = (16 * 4 / 0.02) ** (1 / 0.51)
    assert knee == pytest.approx(7.4e6, rel=0.02)
    seen = rates(PowerScheduler(warmup=0, decay=10), 200, 16, 4096, 0.02)
    held = math.floor(knee / (16 * 4096))
    assert set(seen[: held + 1]) == {0.02} and seen[held + 1] < 0.02
    assert seen[-11:] == sorted(seen[-11:], reverse=True) and seen[-1] < 0.1 * seen[-11]


def test_in_a_stage_it_counts_the_tokens_of_the_step(tmp_path: Path) -> None:
    run = tiny.stage(PowerScheduler(a=0.001, warmup=0, decay=0), tmp_path)
    rows: list[dict[str, float]] = []
    run.run(on_step=rows.append)
    step, lr = tiny.ROWS * 32, run.ctx.peak_lr
    expected = [lr] + [min(lr, step / 4096 * 0.001 * (step * i) ** -0.51) for i in range(1, len(rows))]
    assert [row["lr"] for row in rows] == pytest.approx(expected) and expected[-1] < lr


def test_with_mup_each_matrix_has_its_share_of_the_rate(tmp_path: Path) -> None:
    """Of a Llama 16 wide over a base of 4: the rate of the step, a quarter of it in the matrices."""
    method, mup = PowerScheduler(a=0.001, warmup=0, decay=0), Mup(base=4)
    run = tiny.stage(method, tmp_path, more=[mup])
    run.run(until=3)
    matrix, gain = "model.layers.0.mlp.up_proj.weight", "model.layers.0.input_layernorm.weight"
    before = {n: run.params[n].detach().clone() for n in (matrix, gain)}
    moments = run.states["adamw.1"]["param"]
    run.run(until=4)
    lr = run.row["lr"]
    assert lr < run.ctx.peak_lr, "the rate has begun to fall"
    for name, share in ((matrix, 0.25), (gain, 1.0)):
        m = moments[name]["exp_avg"] / (1 - 0.9**4)
        step = m / ((moments[name]["exp_avg_sq"] / (1 - 0.95**4)).sqrt() + 1e-8)
        decay = run.of(Adamw)[0][1].decay_of(run.params[name]) * before[name]
        moved = before[name] - run.params[name]
        torch.testing.assert_close(moved, share * lr * (step + decay), rtol=1e-3, atol=1e-7)


def test_it_wants_to_know_how_many_tokens_a_step_has() -> None:
    with pytest.raises(UserError, match="no fixed number"):
        PowerScheduler().init(nn.Module(), Context(steps=10, batch_rows=8))
    with pytest.raises(UserError, match="do not fit"):
        PowerScheduler(warmup=20).init(nn.Module(), Context(steps=10, batch_rows=8, row_tokens=4))


@pytest.mark.parametrize(
    "wrong", [{"a": 0.0}, {"b": 0.1}, {"sequence": 0}, {"before": -1.0}, {"warmup": 1.5}]
)
def test_settings_out_of_range(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        make(PowerScheduler, wrong, "here")
