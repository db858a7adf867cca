"""Rows are replaced, never added; an experiment has the same rows alone as beside others; shares hold."""
from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.corpus.corpora import build, texts
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.data.order.pack import Pack
from trainwright.evaluate.audit.train_once_answer_all import TrainOnceAnswerAll

SHARES = {"canary": 0.2, "leak": 0.15}


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("once")
    build(folder / "web", texts(60), tune=0.0, test=0.0)
    more = [row for name in SHARES for row in texts(12, name)]
    build(folder / "tests", more, tune=0.0, test=0.0, tokenizer=str(folder / "web"))
    inputs = {"data": [folder / "web"], "experiments": [folder / "tests"]}
    return Context(inputs=inputs, batch_rows=20, seed=3)


def run(ctx: Context, steps: int = 12, **settings: Any) -> list[Batch]:
    """The batches of a run, and none of the notes of another."""
    ctx = copy.copy(ctx)
    pack, method = Pack(length=24), TrainOnceAnswerAll(shares=SHARES, **settings)
    model, out = small(), []
    states = pack.init(model, ctx), method.init(model, ctx)
    for ctx.step in range(steps):
        out.append(method.next(lambda: pack.next(None, states[0], ctx), states[1], ctx))  # type: ignore[arg-type]
    return out


def of(batch: Batch, name: str) -> torch.Tensor:
    """Which rows are of an experiment."""
    if name not in batch["domains"]:
        return torch.zeros(len(batch["domain"]), dtype=torch.bool)
    return batch["domain"][:, 0] == batch["domains"].index(name)


def test_an_experiment_is_the_same_alone_and_beside_others(ctx: Context) -> None:
    control, every = run(ctx, active=()), run(ctx)
    alone = {name: run(ctx, active=(name,)) for name in SHARES}
    for t, both in enumerate(every):
        rows = {name: of(both, name) for name in SHARES}
        assert not (rows["canary"] & rows["leak"]).any()
        for name, mine in rows.items():
            one = alone[name][t]
            assert torch.equal(of(one, name), mine)
            for part in ("input_ids", "targets", "position_ids", "document"):
                assert torch.equal(one[part][mine], both[part][mine])
                assert torch.equal(one[part][~mine], control[t][part][~mine]), "nothing else has changed"
        rest = ~(rows["canary"] | rows["leak"])
        assert torch.equal(both["input_ids"][rest], control[t]["input_ids"][rest])
        assert both["input_ids"].shape == control[t]["input_ids"].shape
    assert not torch.equal(every[0]["input_ids"], control[0]["input_ids"])


def test_the_control_is_the_run_without_the_method(ctx: Context) -> None:
    pack, again = Pack(length=24), copy.copy(ctx)
    state = pack.init(small(), again)
    for t, batch in enumerate(run(ctx, 4, active=())):
        again.step = t
        assert torch.equal(batch["input_ids"], pack.next(None, state, again)["input_ids"])  # type: ignore[arg-type]


def test_shares_hold_on_average_and_every_row_comes_by(ctx: Context) -> None:
    every = run(ctx, 60)
    for name, share in SHARES.items():
        found = sum(int(of(batch, name).sum()) for batch in every) / (60 * 20)
        assert found == pytest.approx(share, abs=0.02)


def test_mistakes(ctx: Context) -> None:
    for settings, why in (({"shares": {}}, "must name experiments"), ({"shares": {"a": 0.6}}, "0.5 together"),
                          ({"shares": SHARES, "active": ("leek",)}, "did you mean 'leak'")):
        with pytest.raises(ValueError, match=why):
            TrainOnceAnswerAll(**settings)
    with pytest.raises(UserError, match="no domain 'canari'"):
        TrainOnceAnswerAll(shares={"canari": 0.1}).init(small(), ctx)
