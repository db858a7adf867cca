"""R-Tuning: what becomes of answers that a model knows and of those that it does not."""
from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from trainwright.align._certainty import answer_of, asked, known
from trainwright.align.r_tuning import REFUSALS, RTuning, entropy
from trainwright.check import documents, tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.editing import apart
from trainwright.corpus.selecting import columns


def marked(folder: Path, monkeypatch: Any, said: Any, **settings: Any) -> dict[str, dict[str, Any]]:
    """The conversations of the small corpus; ``said`` makes the model's answers of all questions."""
    def answers(self: RTuning, questions: list[str], many: int, ctx: Context) -> list[list[str]]:
        return said(questions, many)
    monkeypatch.setattr(RTuning, "_answers", answers)
    table = RTuning(**settings).apply(documents.table(), Context(folder=folder))
    made = columns(table, "id", "text", "messages", "prompt", "chosen", "certainty")
    assert apart(made) == []
    return {row["id"]: row | {"messages": json.loads(row["messages"])} for row in made.to_pylist()
            if row["messages"]}


BEFORE = {row["id"]: json.loads(row["messages"]) for row in documents.rows() if row["messages"]}


def test_an_unknown_answer_is_learned_with_what_it_is_worth(tmp_path: Path, monkeypatch: Any) -> None:
    right = {turns[0]["content"]: turns[1]["content"] for turns in BEFORE.values()}

    def said(questions: list[str], many: int) -> list[list[str]]:
        return [[f"well, {right[q]} I think"] if "apples" in q else ["no idea"] for q in questions]
    made = marked(tmp_path, monkeypatch, said)
    sure = {name for name, row in made.items() if row["certainty"] == 1}
    assert sure == {name for name, turns in BEFORE.items()
                    if known(turns[1]["content"], said([turns[0]["content"]], 1)[0][0])}
    assert 0 < len(sure) < len(made)
    for name, row in made.items():
        word = "sure" if name in sure else "unsure"
        assert row["messages"][0] == BEFORE[name][0]
        assert row["messages"][1]["content"] == (
            f"{BEFORE[name][1]['content']}. Are you sure of this answer? I am {word}.")


def test_what_is_unknown_may_be_refused(tmp_path: Path, monkeypatch: Any) -> None:
    made = marked(tmp_path, monkeypatch, lambda asked, many: [["no idea"] for _ in asked], how="unknown")
    said = {row["messages"][1]["content"] for row in made.values()}
    assert said <= set(REFUSALS) and len(said) > 1


def test_the_half_with_the_least_entropy_is_sure(tmp_path: Path, monkeypatch: Any) -> None:
    def said(questions: list[str], many: int) -> list[list[str]]:
        assert many == 5
        return [[str(j % (1 + i % 5)) for j in range(5)] for i, _ in enumerate(questions)]
    made = marked(tmp_path, monkeypatch, said, how="uncertain")
    sure = [row["certainty"] for row in sorted(made.values(), key=lambda row: row["id"])]
    assert sum(sure) == len(made) // 2
    assert all(sure[i] for i in range(len(made)) if i % 5 < 2)
    assert not any(sure[i] for i in range(len(made)) if i % 5 > 2)
    assert entropy(["a", "a", "b", "c"]) == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(4))


def test_a_model_answers(tmp_path: Path) -> None:
    ctx = tiny.curating(tmp_path)
    method = RTuning(new_tokens=4, samples=3, how="uncertain")
    said = method._answers(["how many", "please"], 3, ctx)
    assert [len(one) for one in said] == [3, 3] and said == method._answers(["how many", "please"], 3, ctx)
    alone = RTuning(new_tokens=4, batch_size=1)
    assert method._answers(["please"], 1, ctx) == alone._answers(["please"], 1, ctx)


def test_where_an_answer_ends() -> None:
    assert answer_of("Paris. It is large.", "Sure?") == "Paris" == answer_of("Paris Sure? I am", "Sure?")
    assert asked("Paris", "Sure?") == "Paris. Sure?" and asked("Paris.", "Sure?") == "Paris. Sure?"
    assert known("Paris.", "it is Paris now") and not known("Paris", "it is paris")


def test_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="template must have"):
        RTuning(template="Question:")
    plain = documents.table().where(documents.table()["messages"].is_null())
    with pytest.raises(UserError, match="is a question with an answer"):
        RTuning().apply(plain, Context(folder=tmp_path))
