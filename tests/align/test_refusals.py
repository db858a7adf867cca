"""What is answered, what is refused, and how well the two are told apart."""
from __future__ import annotations

import pytest
import torch

from tests.align.pairs import context
from trainwright.align.refusals import Answer, Refusals, numbers
from trainwright.check import tiny
from trainwright.core.errors import UserError


def test_by_hand() -> None:
    """Ranked by (c + p) / 2: right, wrong, right, wrong, right: (1 + 2/3 + 3/5) / 3."""
    answers = [Answer(True, 0.9, 0.9), Answer(False, 0.8, 0.8), Answer(True, 0.4, 0.8),
               Answer(False, 0.3, 0.7), Answer(True, 0.2, 0.2)]
    assert numbers(answers) == pytest.approx({
        "average_precision": (1 + 2 / 3 + 3 / 5) / 3, "answered": 0.4, "accuracy_answered": 0.5,
        "accuracy_all": 0.6, "refused_unknown": 0.5})


def test_average_precision_is_that_of_scikit_learn() -> None:
    score = pytest.importorskip("sklearn.metrics").average_precision_score
    g = torch.Generator().manual_seed(0)
    answers = [Answer(bool(a > 0.6), float(b), float(c)) for a, b, c in torch.rand(40, 3, generator=g)]
    right = score([a.right for a in answers], [a.sure + a.confidence for a in answers])
    assert numbers(answers)["average_precision"] == pytest.approx(right)


def test_who_refuses_everything_is_not_perfect() -> None:
    told = numbers([Answer(True, 0.1, 0.5), Answer(False, 0.2, 0.5)])
    assert told["answered"] == told["accuracy_answered"] == 0 and told["refused_unknown"] == 1
    assert told["accuracy_all"] == told["average_precision"] == 0.5


def test_what_asks_nothing_or_more_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="ask must say something"):
        Refusals(ask=" ")
    with pytest.raises(UserError, match=r"has [\d,]+ tokens, and the model has \d+ positions"):
        Refusals()._logp(tiny.model(), context(), [([5], "many apples " * 1000, " are left")])


def test_log_probabilities_of_what_is_said_next() -> None:
    model, ctx = tiny.model().eval(), context()
    method, ids = Refusals(batch_size=2), [[5, 6, 7], [8, 9], [10, 11, 12, 13]]
    found = method._logp(model, ctx, [(one, "many apples", " are left") for one in ids])
    for one, (logp, tokens) in zip(ids, found.tolist(), strict=True):
        parts = [ctx.tokenizer(t, add_special_tokens=False)["input_ids"]
                 for t in ("many apples", " are left")]
        whole = torch.tensor([[*one, *parts[0], *parts[1]]])
        with torch.no_grad():
            each = model(input_ids=whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[:, 0]
        assert tokens == len(parts[1]) and logp == pytest.approx(float(each[-len(parts[1]):].sum()), rel=1e-4)
