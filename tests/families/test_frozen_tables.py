"""Frozen tables in eight bits: the rounding by hand, rows alone where rows are read, and a stage of them."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.families.test_frozen import QLORA, draw, run_with
from trainwright import families
from trainwright.check import tiny
from trainwright.core import checkpoint
from trainwright.core.errors import UserError
from trainwright.core.recipe import parse
from trainwright.families.bits import dense
from trainwright.families.frozen_tables import EightBits, freeze_tables, pack_rows
from trainwright.lm.cross_entropy import tiled_cross_entropy


def test_each_row_has_its_own_scale() -> None:
    held = pack_rows(torch.tensor([[0.5, -1.0, 0.25], [0.0, 0.0, 0.0], [2.0, 127.0, -63.4]]))
    assert held.codes.tolist() == [[64, -127, 32], [0, 0, 0], [2, 127, -63]]
    assert torch.allclose(dense(held), torch.tensor(
        [[64 / 127, -1.0, 32 / 127], [0.0, 0.0, 0.0], [2.0, 127.0, -63.0]]))
    wide = pack_rows(draw(50, 576))
    bits = 8 * sum(t.numel() * t.element_size() for t in wide.held().values()) / wide.numel()
    assert bits == 8 + 32 / 576


def test_rows_alone_are_made_where_rows_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    held = nn.Parameter(pack_rows(draw(70, 16)), requires_grad=False)
    whole, ids = dense(held), torch.tensor([[3, 3, 69], [0, 1, 2]])
    x, targets = [draw(9, 16).requires_grad_() for _ in range(2)], torch.arange(9) * 7
    by_hand = F.cross_entropy(x[0] @ whole.T, targets, reduction="none")
    by_hand.sum().backward()
    turned = x[0].detach() @ held.T
    monkeypatch.setattr(EightBits, "dense", lambda *_: pytest.fail("the whole table was made"))
    assert torch.equal(F.embedding(ids, held), whole[ids])
    assert torch.equal(held[5:9], whole[5:9]) and torch.equal(held[ids], whole[ids])
    losses = tiled_cross_entropy(x[1], held, None, targets)
    losses.sum().backward()
    assert torch.allclose(losses, by_hand, atol=1e-5) and torch.allclose(x[1].grad, x[0].grad, atol=1e-5)
    assert torch.allclose(turned, x[0].detach() @ whole.T, atol=1e-5)
    assert held.bfloat16()[2:4].dtype == torch.bfloat16
    with pytest.raises(UserError, match="frozen in eight bits: leave out the stage's \"frozen_tables\""):
        held.zero_()


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_a_stage_trains_resumes_and_leaves_a_plain_model(tmp_path: Path, kind: str) -> None:
    run = run_with(QLORA, kind, "nf4", tables="int8")
    tables = {n: p for n, p in run.model.named_parameters() if isinstance(p, EightBits)}
    assert len(tables) == 2, "embeddings and head, or embeddings of words and places"
    tied = run.model.get_output_embeddings().weight is run.model.get_input_embeddings().weight  # type: ignore[operator]
    assert tied == (kind == tiny.GPT2)
    run.run(until=2)
    saved = checkpoint.save(run, tmp_path / "saved", {})
    run.run()
    again = run_with(QLORA, kind, "nf4", saved, "int8")
    again.run()
    assert again.row["loss"] == run.row["loss"]
    held = {n: dense(p).clone() for n, p in tables.items()}
    ids = torch.arange(24)[None]
    with torch.no_grad():
        before = run.model.eval()(ids).logits
        families.write(run.model, run.performed, 0, tmp_path / "out", None)
        read: Tensor = families.load(tmp_path / "out", "a test").eval()(ids).logits
    assert torch.allclose(read, before, atol=1e-5)
    assert not any(isinstance(p, EightBits) for p in run.model.parameters())
    assert all(torch.equal(run.model.get_parameter(n), t) for n, t in held.items())


def test_tables_that_are_trained_are_refused() -> None:
    with pytest.raises(UserError, match="all are: name an adapter"):
        freeze_tables(tiny.model())


@pytest.mark.parametrize(("key", "how"), [("frozen", "nf4"), ("frozen_tables", "int8")])
def test_a_stage_with_fewer_bits_is_not_compiled(key: str, how: str) -> None:
    stage = {"name": "tuned", "kind": "train", "model": {"type": "llama"}, "steps": 1, "methods": [],
             key: how, "compile": True}
    with pytest.raises(UserError, match=f'{key} = "{how}" is not compiled'):
        parse({"title": "a test", "stage": [stage]}, Path("mine.toml"), "")
