"""Distillation to the start: the divergence and the distance by hand, 0 at the start, nothing
for what is not learned."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.finetune.test_label import LABELLED, corpus
from tests.lm.architectures import make as build
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Batch
from trainwright.core.settings import make as settings
from trainwright.finetune.classifier import Classifier
from trainwright.finetune.rehearsal_free_distillation import RehearsalFreeDistillation
from trainwright.lm.classes import class_logits
from trainwright.planning.synthetic import synthetic

KINDS = ("llama", "qwen2", "gpt2", "gemma2")
"""Gemma caps its logits: its head is not a plain one."""


def batch() -> Batch:
    made = synthetic(2, 12, 64, Context())
    made["targets"][:, -3:] = -100
    return made


def pair(kind: str) -> tuple[torch.nn.Module, Context]:
    """A model that has moved away from its reference."""
    model, reference = build(kind), build(kind).requires_grad_(False)
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return model, Context(frozen={"reference": reference})


def outputs(model: torch.nn.Module, given: Batch) -> tuple[Tensor, Tensor]:
    out = model(input_ids=given["input_ids"], position_ids=given["position_ids"], output_hidden_states=True)
    return out.logits.softmax(-1), out.hidden_states[-1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["prediction", "features"])
def test_the_formula_by_hand(how: str, kind: str) -> None:
    method, given = RehearsalFreeDistillation(how=how), batch()
    model, ctx = pair(kind)
    method.init(model, ctx)
    values = method.loss(model, given, {}, ctx)
    (p, h), (p_before, h_before) = outputs(model, given), outputs(ctx.frozen["reference"], given)
    if how == "prediction":
        expected = (p_before * (p_before / p).log()).sum(-1)
    else:
        expected = ((h - h_before) ** 2).sum(-1) / h.shape[-1]
    learned = given["targets"] != -100
    assert values.shape == (2, 12) and not values[~learned].any() and method.count(given) == learned.sum()
    assert (
        torch.allclose(values[learned], expected[learned], rtol=1e-4, atol=1e-6)
        and (values[learned] > 0).all()
    )
    values.sum().backward()
    assert any(q.grad is not None and q.grad.any() for q in model.parameters())
    assert all(q.grad is None for q in ctx.frozen["reference"].parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["prediction", "features"])
def test_it_is_zero_at_the_start(how: str, kind: str) -> None:
    """Exactly, and its gradient too: Adam would make whole steps of what rounding leaves."""
    model = build(kind)
    values = RehearsalFreeDistillation(how=how).loss(
        model, batch(), {}, Context(frozen={"reference": build(kind)})
    )
    assert not values.any()
    values.sum().backward()
    assert not any(p.grad.any() for p in model.parameters() if p.grad is not None)


def sorted_model(classes: tuple[str, ...], seed: int) -> torch.nn.Module:
    model = build("llama").eval()
    Classifier(classes=classes, pool="mean", dropout=0.0).operate(model, Context(seed=seed))
    with torch.no_grad():
        for p in model.class_head.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return model


def test_classes_by_hand(tmp_path: Path) -> None:
    """Three classes were seen: one is old, where the reference has the word (its head has another order),
    two are new; the fourth is of a later stage, and nothing says what it should be."""
    model = sorted_model(("spam", "later", "ham", "eggs"), 1)
    reference = sorted_model(("ham", "spam"), 2).requires_grad_(False)
    ctx = corpus(tmp_path / "c", "spam", "eggs")                               # its labels: eggs, spam
    ctx.frozen["reference"] = reference
    method = RehearsalFreeDistillation(how="classes", old=("ham",))
    method.init(model, ctx)
    z, before = class_logits(model, LABELLED), class_logits(reference, LABELLED)
    values = method.loss(model, LABELLED, {}, ctx)
    for row, label in enumerate(("spam", "eggs")):
        targets = {"spam": float(label == "spam"), "ham": float(before[row, 0].sigmoid()),
                   "eggs": float(label == "eggs")}
        places = {"spam": 0, "ham": 2, "eggs": 3}
        p = {name: float(z[row, place].detach().sigmoid()) for name, place in places.items()}
        by_hand = -sum(t * math.log(p[n]) + (1 - t) * math.log(1 - p[n]) for n, t in targets.items()) / 3
        assert float(values[row]) == pytest.approx(by_hand, rel=1e-5)
    assert method.count(LABELLED) == 2
    values.sum().backward()
    assert model.class_head.out.weight.grad[2].any() and not model.class_head.out.weight.grad[1].any()
    assert all(q.grad is None for q in reference.parameters())


def test_new_classes_do_not_push_old_logits_where_the_reference_left_them(tmp_path: Path) -> None:
    """A model that is its reference has no gradient at the old class's output; a softmax would have one."""
    model, ctx = sorted_model(("ham", "spam", "eggs"), 1), corpus(tmp_path / "c", "spam", "eggs")
    ctx.frozen["reference"] = sorted_model(("ham", "spam", "eggs"), 1)
    method = RehearsalFreeDistillation(how="classes", old=("ham",))
    method.loss(model, LABELLED, {}, ctx).sum().backward()
    bias = model.class_head.out.bias.grad
    assert bias[0].abs() < 1e-6 and bias[1:].abs().min() > 1e-3


def test_the_first_stage_needs_no_reference_and_classes_must_be_known(tmp_path: Path) -> None:
    model, ctx = sorted_model(("ham", "spam"), 1), corpus(tmp_path / "c", "spam", "ham")
    method = RehearsalFreeDistillation(how="classes")
    assert method.init(model, ctx) == {}
    assert method.loss(model, LABELLED, {}, ctx).shape == (2,)
    with pytest.raises(UserError, match="the class 'eggs', and the classifier knows 'ham', 'spam'"):
        RehearsalFreeDistillation(how="classes", old=("eggs",)).init(
            model, Context(frozen={"reference": model})
        )
    with pytest.raises(UserError, match="the model has no classes"):
        method.init(build("llama"), ctx)
    with pytest.raises(UserError, match="the batch has no labels"):
        method.count(batch())
    with pytest.raises(UserError, match="old names classes"):
        settings(RehearsalFreeDistillation, {"old": ["ham"]}, "adapt")


def test_beside_next_token_it_is_added_by_its_weight(tmp_path: Path) -> None:
    """The loss of a step with both is the one plus ``weight`` times the other."""
    def loss(*methods: object) -> float:
        run = tiny.stage(None, tmp_path, more=methods)  # type: ignore[arg-type]
        run.ctx.frozen["reference"] = tiny.model(seed=1)
        run.run(until=1)
        return run.row["loss"]

    plain, one, three = loss(), loss(RehearsalFreeDistillation()), loss(RehearsalFreeDistillation(weight=3.0))
    assert one > plain and three - plain == pytest.approx(3 * (one - plain), rel=1e-3)


def test_without_a_reference_it_says_what_to_write() -> None:
    with pytest.raises(UserError, match='reference = "NAME"'):
        RehearsalFreeDistillation().init(build("llama"), Context())
    with pytest.raises(UserError, match="32 tokens"):
        RehearsalFreeDistillation().init(
            build("llama"), Context(frozen={"reference": build("llama", vocab_size=32)})
        )
