"""Heads are put on, kept and taken off in one place, whoever's they are."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.align.pairs import context
from trainwright.align.reward_head import RewardHead
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.finetune.classifier import Classifier
from trainwright.lm.heads import PutsOnAHead, found
from trainwright.lm.layers import Carrier

METHODS: tuple[PutsOnAHead, ...] = (RewardHead(), Classifier(classes=("a", "b"), pool="last"))


def own(model: nn.Module) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_what_is_written_comes_back_and_the_model_is_as_it_was(method: PutsOnAHead, tmp_path: Path) -> None:
    model, plain = tiny.model(), own(tiny.model())
    method.operate(model, context())
    assert found(model, method.place, Carrier) is model.get_submodule(method.place)
    with torch.no_grad():
        for p in method.head(model).values():
            p.add_(1.5)
    method.save_delta(model, tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == [method.file]
    again = tiny.model()
    method.operate(again, context())
    assert any(not torch.equal(p, method.head(model)[n]) for n, p in method.head(again).items())
    method.load_delta(again, tmp_path)
    assert all(torch.equal(p, method.head(model)[n]) for n, p in method.head(again).items())
    method.fold(again)
    assert own(again).keys() == plain.keys() and all(torch.equal(p, plain[n]) for n, p in own(again).items())
    assert found(again, method.place, Carrier) is None


def test_two_heads_stand_side_by_side_and_one_is_not_put_on_twice() -> None:
    model, before = tiny.model(), torch.get_rng_state()
    for method in METHODS:
        method.operate(model, context())
    assert torch.equal(torch.get_rng_state(), before), "no global generator is drawn from"
    assert all(set(m.head(model)) for m in METHODS)
    with pytest.raises(UserError, match="classifier: the model has a classifier already"):
        METHODS[1].operate(model, context())
