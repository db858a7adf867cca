"""Multiple choice: the likeliest by an independent softmax, letters and numbers, what is left out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.evaluate import multiple_choice
from trainwright.evaluate.multiple_choice import Choices, MultipleChoice
from trainwright.lm.asking import asked


def rows(*told: dict[str, Any]) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
    """Documents of plain questions, and what they say."""
    made = [
        {"id": str(i), "text": f"the question {i}", "messages": None, "prompt": None, "metadata": "{}"}
        for i in range(len(told))
    ]
    return made, {row["text"]: one for row, one in zip(made, told, strict=True)}


def test_a_right_one_is_a_text_a_number_or_a_letter() -> None:
    of = MultipleChoice()._of
    for answer in ("b", 1, "B"):
        assert of({"choices": ["a", "b"], "answer": answer}) == Choices(("a", "b"), 1)
    for answer in ("c", 2, "Z", None, True):
        assert of({"choices": ["a", "b"], "answer": answer}) is None
    assert of({"choices": ["a"], "answer": 0}) is None and of({"answer": 0}) is None


@pytest.mark.parametrize("divide", ["sum", "tokens", "bytes"])
def test_the_answer_is_the_likeliest(divide: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ctx, model = tiny.context(tiny.place()), tiny.model()
    ctx.tokenizer = tiny.tokenizer()
    choices = ["rain falls", "grüne Äcker", "a"]
    made, told = rows({"choices": choices, "answer": 0}, {"choices": choices, "answer": "C"}, {})
    scores = []
    for text in choices:  # one at a time, by a softmax over all words
        before = asked(made[0], model, ctx.tokenizer, "test").ids
        ids = ctx.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = model(input_ids=torch.tensor([[*before, *ids]])).logits[0].log_softmax(-1)
        whole = sum(float(logp[len(before) - 1 + i, word]) for i, word in enumerate(ids))
        scores.append(whole / {"sum": 1, "tokens": len(ids), "bytes": len(text.encode())}[divide])
    method = MultipleChoice(divide=divide, batch_size=2)
    found = method._scores(model, ctx, [(made[0], Choices(tuple(choices), 0))])
    assert found.tolist() == pytest.approx(scores, rel=1e-5)
    monkeypatch.setattr(multiple_choice, "of_corpus", lambda *rest: made)
    monkeypatch.setattr(multiple_choice, "facts", lambda ctx: told)
    numbers = method.measure(model, ctx)
    assert numbers["multiple_choice_ungraded"] == 1 and numbers["multiple_choice_chance"] == pytest.approx(
        1 / 3
    )
    assert 0 <= numbers["multiple_choice_low"] <= numbers["multiple_choice"] <= 1


def test_as_a_task_the_text_or_the_letter_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiple_choice, "facts", lambda ctx: {"q": {"choices": ["yes", "no"], "answer": 1}})
    grade = MultipleChoice().grader(tiny.context(tiny.place()))
    assert [grade("q", said) for said in ("no", " B.", "A", "no no")] == [1, 1, 0, 0]
    assert math.isnan(grade("other", "no"))


def test_documents_without_choices_are_refused() -> None:
    ctx = tiny.context(tiny.place())
    ctx.tokenizer = tiny.tokenizer()
    with pytest.raises(UserError, match="no document has choices"):
        MultipleChoice(domains=("chat",), most=3).measure(tiny.model(), ctx)
