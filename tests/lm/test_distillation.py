"""Distances from a frozen model: the divergence of predictions, the distance of hidden states, and exactly 0
from itself."""
from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F

from tests.lm.architectures import IDS, make
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.lm.distillation import distance, divergence, frozen_model

TARGETS = torch.where(torch.arange(20) % 3 == 0, UNTRAINED, IDS)
BATCH = {"input_ids": IDS, "targets": TARGETS, "position_ids": torch.arange(20).expand(2, -1)}
KINDS = pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])


def pair(kind: str):
    """A model, and another one of the same kind."""
    model = make(kind)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.data.mul_(1.1)
    return model, other


@KINDS
def test_divergence_is_that_of_the_next_token(kind: str) -> None:
    """gemma2's head has a cap."""
    model, other = pair(kind)
    found = divergence(model, other, BATCH)
    p, q = (m(input_ids=IDS).logits.log_softmax(-1) for m in (other, model))
    expected = F.kl_div(q, p, reduction="none", log_target=True).sum(-1)
    assert torch.allclose(found, expected.masked_fill(TARGETS == UNTRAINED, 0), atol=1e-5)
    found.sum().backward()
    assert all(p.grad is None for p in other.parameters()) and model.get_input_embeddings().weight.grad.any()


@KINDS
def test_distance_is_the_mean_square_over_hidden_entries(kind: str) -> None:
    model, other = pair(kind)
    found = distance(model, other, BATCH)
    mine, theirs = (m.get_decoder()(input_ids=IDS).last_hidden_state for m in (model, other))
    expected = (mine - theirs).square().mean(-1).masked_fill(TARGETS == UNTRAINED, 0)
    assert torch.allclose(found, expected, atol=1e-5)
    found.sum().backward()
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("compare", [divergence, distance])
def test_it_is_exactly_zero_from_itself_with_its_gradient(compare) -> None:
    model = make("llama")
    found = compare(model, copy.deepcopy(model), BATCH)
    found.sum().backward()
    assert not found.any() and not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def test_another_width_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be compared: 32 columns and 64"):
        distance(make("llama"), make("llama", hidden_size=64), BATCH)


def test_a_missing_model_is_named_with_its_role() -> None:
    with pytest.raises(UserError, match=r"someone: the stage has no model .* from = { teacher ="):
        frozen_model("someone", "teacher", Context())
    model = make("llama")
    assert frozen_model("someone", "teacher", Context(frozen={"teacher": model})) is model
