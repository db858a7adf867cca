"""NEFTune: the size of the noise, that each row has its own, and that none is left behind."""
from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.finetune.neftune import Neftune, embeddings

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])


def noise(model: nn.Module, ids: torch.Tensor, train: bool = True) -> torch.Tensor:
    """What was added to the embeddings of these tokens."""
    layer = embeddings(model).train(train)
    return (layer(ids) - layer.weight[ids]).detach()


@pytest.fixture
def model() -> nn.Module:
    return tiny.model()


def test_the_noise_is_uniform_and_of_the_length_that_the_paper_says(model: nn.Module) -> None:
    ctx, alpha = Context(seed=1), 5.0
    Neftune(alpha=alpha).operate(model, ctx)
    ids = torch.arange(60).repeat(8).view(8, 60) + torch.arange(8)[:, None]
    added = noise(model, ids)
    most = alpha / math.sqrt(60 * added.shape[-1])
    assert 0.98 * most < float(added.abs().max()) <= most
    lengths = added.flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.full((8,), alpha / math.sqrt(3)), rtol=0.1)
    assert abs(float(added.mean())) < 0.05 * most


def test_it_depends_on_seed_step_and_row_alone(model: nn.Module) -> None:
    ctx = Context(seed=1)
    Neftune().operate(model, ctx)
    both = noise(model, IDS)
    assert torch.equal(both[1:], noise(model, IDS[1:])), "a row alone, as in another micro-batch or rank"
    assert not torch.equal(both[0], both[1]) and torch.equal(both, noise(copy.deepcopy(model), IDS))
    ctx.step = 1
    assert not torch.equal(both, noise(model, IDS)), "each step anew"


def test_none_is_added_to_what_is_measured_or_exported(model: nn.Module) -> None:
    Neftune().operate(model, Context())
    assert not noise(model, IDS, train=False).any()
    Neftune().fold(model)
    assert not noise(model, IDS).any()


def test_a_model_without_embeddings_is_refused() -> None:
    with pytest.raises(UserError, match="needs a model of transformers"):
        Neftune().operate(nn.Linear(2, 2), Context())
