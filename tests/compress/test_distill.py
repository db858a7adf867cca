"""Distillation: each divergence by hand with its gradient, 0 from itself, other widths, and the teacher as a
column."""
from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.finetune.test_rehearsal_free_distillation import batch, pair
from tests.lm.architectures import make as build
from trainwright import families
from trainwright.check import tiny
from trainwright.compress.distill import Distill
from trainwright.compress.teacher_logits import TeacherLogits
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus import building
from trainwright.data.order.examples import Examples
from trainwright.lm.distillation import compared

DIVERGENCES = ("forward", "reverse", "jensen_shannon")


def kl(a: Tensor, b: Tensor) -> Tensor:
    return (a * (a / b).log()).sum(-1)


def by_hand(z: Tensor, z_other: Tensor, kind: str, share: float) -> Tensor:
    q, p = z.softmax(-1), z_other.softmax(-1)
    m = share * p + (1 - share) * q
    return {"forward": kl(p, q), "reverse": kl(q, p),
            "jensen_shannon": share * kl(p, m) + (1 - share) * kl(q, m)}[kind]


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_value_and_gradient_are_those_of_the_formula(kind: str) -> None:
    draw = torch.Generator().manual_seed(0)
    z, other = (3 * torch.randn(7, 11, generator=draw, dtype=torch.float64) for _ in range(2))
    found = []
    for of in (compared, by_hand):
        leaf = z.clone().requires_grad_()
        values = of(leaf, other, kind, 0.3)
        (values * torch.arange(1, 8)).sum().backward()
        found += [values.detach(), leaf.grad]
    torch.testing.assert_close(found[0], found[2])
    torch.testing.assert_close(found[1], found[3])


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_it_is_exactly_zero_from_itself_and_finite_far_away(kind: str) -> None:
    z = torch.randn(5, 9, requires_grad=True)
    value = compared(z, z.detach().clone(), kind)
    value.sum().backward()
    assert not value.any() and z.grad is not None and not z.grad.any()
    far = torch.tensor([[0.0, 500.0, -torch.inf]], requires_grad=False)
    assert compared(torch.tensor([[500.0, 0.0, 1.0]]), far, kind).isfinite().all()


def test_a_temperature_softens_both_and_its_square_keeps_the_gradients_size() -> None:
    model, ctx = pair("llama")
    ctx.frozen = {"teacher": ctx.frozen["reference"]}
    given = batch()
    values = Distill(temperature=2.0).loss(model, given, {}, ctx)
    z, other = (m(input_ids=given["input_ids"], position_ids=given["position_ids"]).logits
                for m in (model, ctx.frozen["teacher"]))
    learned = given["targets"] != -100
    torch.testing.assert_close(values[learned], 4 * by_hand(z / 2, other / 2, "forward", 0.5)[learned],
                               rtol=1e-4, atol=1e-5)
    assert not values[~learned].any() and Distill().count(given) == learned.sum()


def test_hidden_states_behind_blocks_meet_those_of_a_deeper_teacher() -> None:
    student, teacher, given = build("llama"), build("llama", num_hidden_layers=4), batch()
    ctx = Context(frozen={"teacher": teacher.requires_grad_(False)})
    values = Distill(compare="blocks").loss(student, given, {}, ctx)
    seen = {}
    for name, model, wanted in (("s", student, (0, 1)), ("t", teacher, (1, 3))):
        hooks = [model.model.layers[i].register_forward_hook(
            lambda m, g, out, key=(name, n): seen.__setitem__(key, out)) for n, i in enumerate(wanted)]
        model(input_ids=given["input_ids"], position_ids=given["position_ids"])
        [hook.remove() for hook in hooks]
    expected = sum((seen["s", n] - seen["t", n]).square().mean(-1) for n in range(2)) / 2
    learned = given["targets"] != -100
    torch.testing.assert_close(values[learned], expected[learned])
    ctx.frozen["teacher"] = build("llama", num_hidden_layers=3)
    with pytest.raises(UserError, match="2 blocks of"):
        Distill(compare="blocks").loss(student, given, {}, ctx)


def test_rows_of_the_vocabulary_that_no_token_uses_do_not_matter() -> None:
    small, wide = build("llama"), build("llama", vocab_size=80)
    ctx = Context(frozen={"teacher": wide.requires_grad_(False)})
    with pytest.raises(UserError, match="the teacher has 80 tokens and the model 64"):
        Distill().init(small, ctx)
    given = batch()
    values = Distill().loss(small, given, {}, ctx)
    z, other = (m(input_ids=given["input_ids"], position_ids=given["position_ids"]).logits[..., :64]
                for m in (small, wide))
    learned = given["targets"] != -100
    torch.testing.assert_close(values[learned], by_hand(z, other, "forward", 0.5)[learned], rtol=1e-4,
                               atol=1e-6)


def test_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = copy.deepcopy(tiny.tokenizer())
    other.add_tokens(["xyzzy"])
    other.save_pretrained(tmp_path)
    ctx = Context(frozen={"teacher": tiny.model()}, inputs={"teacher": [tmp_path]},
                  tokenizer=tiny.tokenizer())
    with pytest.raises(UserError, match="the teacher has another vocabulary than the model"):
        Distill().init(tiny.model(), ctx)


# ---- the teacher as a column -------------------------------------------------------------------------------

LENGTH = 16


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small corpus again, with what a model says of its documents."""
    place = tmp_path_factory.mktemp("asked")
    families.save(tiny.model(seed=3), place / "model", tiny.tokenizer())
    settings = building.CorpusSettings(tokenizer=str(tiny.corpus()), data=tiny.corpus())
    ctx = Context(inputs={"data": [tiny.corpus()], "model": [place / "model"]}, folder=place / "work",
                  root=place)
    (place / "work").mkdir()
    (place / "corpus").mkdir()
    building.build(place / "corpus", [TeacherLogits(length=LENGTH, top_k=8)], settings, ctx,
                   place / "cache", lambda line: None)
    return place / "corpus"


def rows(asked: Path, length: int = LENGTH) -> dict[str, Any]:
    ctx = tiny.context(tiny.place())
    ctx.batch_rows, ctx.policy, ctx.inputs = 8, tiny.model(), {"data": [asked]}
    data = Examples(fields=("text", "teacher"), length=length)
    return data.next(lambda: {}, data.init(tiny.model(), ctx), ctx)


def test_the_column_is_what_the_teacher_says_with_its_rest_as_one_word(asked: Path) -> None:
    given, model, teacher = rows(asked), tiny.model(), tiny.model(seed=3).eval()
    learned = given["targets"] != -100
    found = Distill(teacher="column").loss(model, given, {}, Context())
    z, other = (m(input_ids=given["input_ids"]).logits.softmax(-1)[learned] for m in (model, teacher))
    best = other.topk(8).indices
    torch.testing.assert_close(given["teacher_ids"][learned], best)
    q, p = (torch.cat([x.gather(1, best), 1 - x.gather(1, best).sum(1, keepdim=True)], 1) for x in (z, other))
    torch.testing.assert_close(found[learned], kl(p, q), rtol=1e-3, atol=1e-5)
    assert (found[learned] <= kl(other, z) + 1e-5).all()
    found.sum().backward()
    assert model.get_input_embeddings().weight.grad.isfinite().all()


def test_other_tokens_than_those_that_the_teacher_read_are_refused(asked: Path) -> None:
    with pytest.raises(UserError, match="teacher_logits needs the same length"):
        rows(asked, 12)


def test_a_batch_without_the_column_is_refused() -> None:
    with pytest.raises(UserError, match="the batch has no teacher"):
        Distill(teacher="column").loss(tiny.model(), batch(), {}, Context())
    with pytest.raises(ValueError, match="needs the teacher itself"):
        Distill(teacher="column", compare="hidden")
