"""The likelihood of comparisons: a function of the difference of rewards alone, plus what centers them."""
from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.align.pairs import batch, context, moved, repeated
from trainwright.align import bradley_terry
from trainwright.align._pairs import rows_of
from trainwright.align._rewards import rewards
from trainwright.align.bradley_terry import BradleyTerry
from trainwright.align.reward_head import RewardHead
from trainwright.check import tiny
from trainwright.core.errors import UserError


def headed() -> torch.nn.Module:
    model = moved()
    RewardHead().operate(model, context())
    return model


def test_by_hand() -> None:
    pairs = batch()
    chosen, rejected = rewards(headed(), rows_of(pairs)).chunk(2)
    values = BradleyTerry(center=0.1).loss(headed(), pairs, {}, context())
    right = -torch.log(torch.exp(chosen) / (torch.exp(chosen) + torch.exp(rejected)))
    torch.testing.assert_close(values, right + 0.1 * (chosen + rejected) ** 2)


def test_a_constant_changes_nothing_unless_rewards_are_centered(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs, plain = batch(), bradley_terry.rewards
    before = BradleyTerry().loss(headed(), pairs, {}, context())
    monkeypatch.setattr(bradley_terry, "rewards", lambda model, rows: plain(model, rows) + 3.0)
    torch.testing.assert_close(BradleyTerry().loss(headed(), pairs, {}, context()), before)
    assert (BradleyTerry(center=0.1).loss(headed(), pairs, {}, context()) > before).all()


def test_pairs_that_teach_nothing() -> None:
    pairs, model, ctx = repeated(batch(), equal=1, without=3), headed(), context()
    values, method = BradleyTerry().loss(model, pairs, {}, ctx), BradleyTerry()
    assert method.count(pairs) == 6 and values[[1, 3]].tolist() == [0, 0]
    trained = [p for p in model.parameters() if p is not model.lm_head.weight]
    grads = torch.autograd.grad(values.sum(), trained, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)


@pytest.mark.slow
def test_the_loss_is_that_of_trl() -> None:
    compute_loss = pytest.importorskip("trl").RewardTrainer.compute_loss
    pairs, model = batch(), headed()
    logits = rewards(model, rows_of(pairs))[:, None]
    machine = SimpleNamespace(gather=lambda t: t, gather_for_metrics=lambda t: t)
    its = SimpleNamespace(model=SimpleNamespace(training=True), accelerator=machine, _tp_size=1,
                          args=SimpleNamespace(center_rewards_coefficient=0.01), _total_train_tokens=0,
                          _metrics={"train": defaultdict(list)})
    theirs = compute_loss(its, lambda **given: SimpleNamespace(logits=logits),
                          {"attention_mask": torch.ones(16, 4, dtype=torch.int64)})
    ctx = context()
    torch.testing.assert_close(BradleyTerry(center=0.01).loss(model, pairs, {}, ctx).mean(), theirs)
    assert float(ctx.notes["rewards/accuracies"][0][0]) == pytest.approx(its._metrics["train"]["accuracy"][0])


def test_it_learns_to_tell_answers_apart(tmp_path: Path) -> None:
    run, rows = tiny.stage(BradleyTerry(), tmp_path), []
    run.run(on_step=rows.append)
    assert abs(rows[0]["loss"] - math.log(2)) < 0.5
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["rewards/accuracies"] > 0.8


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(UserError, match="gives no rewards"):
        BradleyTerry().init(tiny.model(), context())
