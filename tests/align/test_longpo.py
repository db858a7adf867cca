"""LongPO: the policy reads the long prompt, the reference the short one; all of the long text is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.align import pairs
from trainwright.align.dpo import Dpo
from trainwright.align.longpo import Longpo, whole_rows
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED


def given() -> dict[str, Any]:
    batch = pairs.batch()
    g = torch.Generator().manual_seed(1)
    return batch | {f"{side}_reference": -20 * torch.rand(8, generator=g) for side in ("chosen", "rejected")}


def by_hand(model: Any, batch: dict[str, Any], side: str, i: int) -> tuple[float, float]:
    """Of one answer, alone in its row: its log-probability, and the mean loss of all of its row."""
    ids = batch[f"{side}_ids"][i][batch[f"{side}_attention_mask"][i] > 0]
    logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    learned = batch[f"{side}_targets"][i][: len(ids) - 1] != UNTRAINED
    return float(logp[learned].sum()), float(-logp.mean())


def test_it_is_the_likelihood_of_all_and_the_preference_times_a_hundredth() -> None:
    model, batch = pairs.moved(), given()
    method = Longpo(beta=0.3, preference=0.7)
    with torch.no_grad():
        found = method.loss(model, batch, {}, Context())
        for i in range(8):
            (chosen, nll), (rejected, _) = (by_hand(model, batch, side, i) for side in ("chosen", "rejected"))
            apart = (chosen - batch["chosen_reference"][i]) - (rejected - batch["rejected_reference"][i])
            assert float(found[i]) == pytest.approx(nll - 0.7 * float(F.logsigmoid(0.3 * apart)), rel=1e-4)
    assert (Longpo().beta, Longpo().preference) == (0.01, 0.01) and method.count(batch) == 8


def test_the_prompt_of_the_chosen_side_alone_is_learned_too() -> None:
    batch = pairs.batch()
    whole = whole_rows(batch)["targets"]
    seen = batch["chosen_attention_mask"].sum(1)
    assert (whole[:8] != UNTRAINED).sum(1).tolist() == (seen - 1).tolist()
    assert torch.equal(whole[8:], batch["rejected_targets"])


def test_equal_answers_teach_nothing_and_a_missing_reference_is_refused() -> None:
    batch = pairs.repeated(given(), equal=2)
    assert Longpo().loss(tiny.model(), batch, {}, Context())[2] == 0 and Longpo().count(batch) == 7
    with pytest.raises(UserError, match='"reference"'):
        Longpo().loss(tiny.model(), pairs.batch(), {}, Context())


def test_another_reference_changes_the_loss_as_its_margin_does() -> None:
    """What the reference makes of the short prompt enters as a difference: to shift both changes nothing."""
    model, batch = pairs.moved(), given()
    shifted = batch | {name: batch[name] + 3 for name in ("chosen_reference", "rejected_reference")}
    turned = batch | {"chosen_reference": batch["chosen_reference"] - 30}
    one, same, other = (
        Longpo(beta=0.1, preference=1).loss(model, b, {}, Context()) for b in (batch, shifted, turned)
    )
    torch.testing.assert_close(one, same)
    assert (other < one).all()


def test_a_model_that_reads_the_long_prompt_is_dpos_reference() -> None:
    model, batch, ctx = pairs.moved(), pairs.batch(), Context(frozen={"reference": tiny.model().eval()})
    with torch.no_grad():
        found = Longpo(reference="model", beta=0.2, preference=1.0).loss(model, batch, {}, ctx)
        plain = Longpo(reference="model", beta=0.2, preference=0.0).loss(model, batch, {}, ctx)
        other = Dpo(beta=0.2).loss(model, batch, {}, ctx)
    torch.testing.assert_close(found - plain, other, rtol=1e-4, atol=1e-5)
    assert not Longpo().asks() and Longpo(reference="model").asks()
