"""IFT: fine-tuning exactly where nothing is mixed; a residual of the past alone; weights of the future."""
from __future__ import annotations

import pytest
import torch

from tests.align.pairs import context, moved
from trainwright.align.ift import Ift, _answers, _predicted, _within_answer
from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch
from trainwright.finetune.lora import Lora
from trainwright.lm.losses import token_losses


def packed() -> Batch:
    """A row with answers of 3 and 2 tokens (in documents of 6 and 4 positions), and one with one of 4."""
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 299, (2, 10), generator=g)
    places = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2, 3], [*range(10)]])
    targets = torch.full((2, 10), UNTRAINED)
    after = torch.randint(3, 299, (2, 10), generator=g)
    after[:, :-1] = torch.where(places[:, 1:] > 0, ids[:, 1:], after[:, :-1])
    for row, t in ((0, 3), (0, 4), (0, 5), (0, 8), (0, 9), (1, 4), (1, 5), (1, 6), (1, 7)):
        targets[row, t] = after[row, t]
    return {"input_ids": ids, "targets": targets, "position_ids": places}


@pytest.mark.parametrize("kind", [tiny.LLAMA, tiny.GPT2])
def test_without_mixing_and_decay_it_is_supervised_fine_tuning(kind: str) -> None:
    model, batch, ctx = tiny.model(kind), packed(), context()
    ours = Ift(mixing=0.0, decay=0.0).loss(model, batch, {}, ctx)
    losses = token_losses(model, batch, ctx)
    right = [losses[0, 3:6].mean(), losses[0, 8:].mean(), losses[1, 4:8].mean()]
    torch.testing.assert_close(ours[ours != 0], torch.stack(right))
    assert Ift().count(batch) == 3 and (ours != 0).nonzero().tolist() == [[0, 0], [0, 6], [1, 0]]
    grads = [torch.autograd.grad(v, list(model.parameters())) for v in (ours.sum(), sum(right))]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_token_weighs_what_follows_from_it() -> None:
    """Of losses (1, 2, 4) with decay 1/2: weights 3, 4, 4, scaled to a sum of 3."""
    values = torch.zeros(2, 10)
    values[0, 3:6], values[0, 8:], values[1, 4:8] = torch.tensor([1.0, 2, 4]), torch.ones(2), torch.ones(4)
    made = Ift(decay=0.5)._weighed(values, packed())
    assert made[0, 0] == pytest.approx((3 * 1 + 4 * 2 + 4 * 4) / (3 + 4 + 4))
    assert made[0, 6] == pytest.approx(1) and made[1, 0] == pytest.approx(1)


def test_gradients_flow_through_the_weights() -> None:
    values = torch.zeros(2, 10)
    values[0, 3:6] = torch.tensor([1.0, 2, 4])
    values.requires_grad_()
    Ift(decay=0.5)._weighed(values, packed())[0, 0].backward()
    weights, loss, total = torch.tensor([3.0, 4, 4]), 27.0, 11.0
    through = torch.tensor([1.0, 0.5 * 1 + 2, 0.25 * 1 + 0.5 * 2 + 4])           # d weight / d l, times l
    parts = torch.tensor([1.0, 1.5, 1.75])                                       # d (sum of weights) / d l
    torch.testing.assert_close(values.grad[0, 3:6], (weights + through) / total - loss / total**2 * parts)


def test_what_is_mixed_was_predicted_one_step_before() -> None:
    model, batch = moved().eval(), packed()
    mixed = _within_answer(batch)
    assert mixed.nonzero().tolist() == [[0, 4], [0, 5], [0, 9], [1, 5], [1, 6], [1, 7], [1, 8]]
    own = _predicted(model, batch["input_ids"], batch["position_ids"], mixed)
    likeliest = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"],
                      use_cache=False).logits.argmax(-1)
    assert torch.equal(own[mixed], likeliest.roll(1, 1)[mixed]) and not own[~mixed].any()


def test_the_residual_knows_the_past_alone() -> None:
    """A later token changes no earlier loss, and the answer of one document none of another."""
    model, batch, ctx = moved(), packed(), context()

    def losses() -> torch.Tensor:
        from trainwright.align import ift
        mixed = _within_answer(batch)
        own = _predicted(model, batch["input_ids"], batch["position_ids"], mixed)
        return ift._losses(model, batch["input_ids"], own, mixed, batch["position_ids"], batch["targets"],
                           0.5)
    before = losses()
    batch["input_ids"][1, 7] = 7
    batch["input_ids"][0, 5] = 9
    after = losses()
    same = (after == before) | (after - before).abs().lt(1e-6)
    assert same[0, :5].all() and same[0, 6:].all() and same[1, :7].all()
    assert not same[1, 7] and not same[0, 5]
    with torch.no_grad():
        mixed, plain = (Ift(mixing=m).loss(model, batch, {}, ctx).sum() for m in (0.2, 0.0))
    assert mixed != plain


def test_documents_are_numbered_over_rows() -> None:
    assert _answers(packed()).tolist() == [[0] * 6 + [1] * 4, [2] * 10]


def test_an_adapter_on_the_head_is_refused() -> None:
    model = tiny.model()
    Lora(rank=2, layers="lm_head").operate(model, context())
    with pytest.raises(UserError, match="not a plain linear layer"):
        Ift().init(model, context())
