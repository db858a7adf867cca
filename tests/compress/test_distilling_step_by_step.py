"""Distilling step-by-step: each half is a mean of its own, however long the other is."""
from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.lm.architectures import IDS, make
from trainwright.check import tiny
from trainwright.compress.distilling_step_by_step import DistillingStepByStep
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.lm.losses import token_losses

TARGETS = IDS.roll(-1, 1).masked_fill(torch.tensor([[True], [False]]) & (torch.arange(20) < 17), -100)
"""Three tokens of the first row, an answer, and all twenty of the second, which has the reasons."""
BATCH = {"input_ids": IDS, "targets": TARGETS, "position_ids": torch.arange(20).expand(2, -1),
         "domain": torch.tensor([[0], [1]]).expand(2, 20), "domains": ["sums", "explain"], "packed": False}


def test_each_half_is_divided_by_its_own_tokens() -> None:
    model, ctx = make("llama"), Context()
    whole = token_losses(model, BATCH, ctx)
    halves = [DistillingStepByStep(half=half) for half in ("answers", "reasons")]
    values = [half.loss(model, BATCH, {}, ctx) for half in halves]
    assert [half.count(BATCH) for half in halves] == [3, 20]
    for row, found in enumerate(values):
        torch.testing.assert_close(found[row], whole[row])
        assert not found[1 - row].any()
    loss = sum(0.5 * v.sum() / half.count(BATCH) for v, half in zip(values, halves, strict=True))
    torch.testing.assert_close(loss, 0.5 * whole[0].sum() / 3 + 0.5 * whole[1].sum() / 20)


def test_a_batch_without_its_half_gives_zeros_that_can_go_backward() -> None:
    model = make("llama")
    one: dict[str, Any] = {n: t[:1] if isinstance(t, torch.Tensor) else t for n, t in BATCH.items()}
    values = DistillingStepByStep(half="reasons").loss(model, one, {}, Context())
    values.sum().backward()
    assert values.shape == (1, 20) and not values.any()


def test_a_corpus_without_reasons_is_refused() -> None:
    with pytest.raises(UserError, match="none of explain: with_rationales makes one"):
        DistillingStepByStep(half="reasons").init(tiny.model(), tiny.context(tiny.place()))
