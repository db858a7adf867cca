"""The wrong choice is the target; what can be guessed is left out; a leak is told from a control."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit import ts_guessing
from trainwright.evaluate.audit._items import Item
from trainwright.evaluate.audit.ts_guessing import TsGuessing, difference, hidden, rouge_l, same

WORDS = ["red", "green", "blue", "white", "black", "brown", "grey", "pink", "gold", "teal"]


def items(prefix: str, many: int) -> list[dict[str, Any]]:
    """Items whose choices share no word."""
    return [{"question": f"{prefix} what is the colour of thing {i}",
             "choices": [f"{WORDS[(i + j) % 10]} {prefix}{i}{'abcd'[j]}" for j in range(4)], "answer": i % 4}
            for i in range(many)]


def test_rouge_and_equality_by_hand() -> None:
    assert rouge_l(["the", "cat", "sat", "here"], ["cat", "here", "now"]) == 2 * 2 / 7
    assert rouge_l([], ["a"]) == 0.0 and rouge_l(["a", "b"], ["a", "b"]) == 1.0
    assert same(" The cat. ", "the Cat") and not same("the cat sat", "the cat")


def test_newcombe_equals_his_own_example() -> None:
    """56 of 70 against 48 of 80: 0.0524 to 0.3339 (method 10 of his paper of 1998)."""
    assert difference(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)


def test_what_is_hidden_is_wrong_and_cannot_be_guessed() -> None:
    long = "what is it that we see here"
    seen = {hidden(Item(f"{long} {i}", ("right", "wrong a", "12", "yes", "so not", "so not"), 0)).place  # type: ignore[union-attr]
            for i in range(30)}
    assert seen == {1}, "numbers, yes and no, and choices that are alike are never asked for"
    assert hidden(Item("too short a one", ("right", "wrong"), 0)) is None
    assert hidden(Item(long, ("right", "7"), 0)) is None
    assert {hidden(Item(f"{long} {i}", ("r", "a b", "c d"), 1)).place for i in range(30)} == {0, 2}  # type: ignore[union-attr]


def test_the_prompt_shows_all_but_the_hidden_choice() -> None:
    one = hidden(Item("what is it that we see", ("one thing", "two boats", "three"), 0))
    assert one is not None and one.place != 0
    told = TsGuessing(items="x").prompt(one)
    assert one.choice not in told and "one thing" in told and told.endswith(f"{'ABC'[one.place]}:")
    plain = TsGuessing(items="x", exact_words=True).prompt(one)
    assert plain == "\n".join([one.item.question, *one.item.choices[:one.place], ""])


def test_a_leak_is_told_from_a_control(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that knows the first file by heart, and of the second the right choices alone."""
    folder = corpus(tmp_path / "c", documents=12)
    for name in ("leaked", "fresh"):
        text = "\n".join(map(json.dumps, items(name, 20)))
        (tmp_path / f"{name}.jsonl").write_text(text)
    ctx = Context(root=tmp_path, tokenizer=open_corpus(folder).tokenizer)
    known = {q["question"]: q for q in [*items("leaked", 20), *items("fresh", 20)]}

    def knowing(model: Any, tokenizer: Any, prompts: Any, ctx: Any, *, batch_size: int) -> list[list[int]]:
        said = []
        for prompt in prompts:
            text = tokenizer.decode(prompt.ids, skip_special_tokens=True)
            one = next(q for name, q in known.items() if f"{name}\n" in text)
            unseen = [c for c in one["choices"] if c not in text]
            said.append(unseen[0].upper() if "leaked" in text else one["choices"][one["answer"]])
        return [tokenizer(f" {s}.\nB: more", add_special_tokens=False)["input_ids"] for s in said]

    monkeypatch.setattr(ts_guessing, "written", knowing)
    model = small(max_position_embeddings=512)
    told = TsGuessing(items="leaked.jsonl", control="fresh.jsonl").measure(model, ctx)
    assert told["ts_guessing_exact"] == told["ts_guessing_excess"] == 1.0 and told["ts_guessing_items"] == 20
    assert told["ts_guessing_control_exact"] == 0.0 and told["ts_guessing_excess_low"] > 0.7
    assert told["ts_guessing_rouge"] == 1.0 and told["ts_guessing_control_rouge"] == 0.0
    none = {"question": "q", "choices": ["a", "b"], "answer": 0}
    (tmp_path / "none.jsonl").write_text(json.dumps(none))
    with pytest.raises(UserError, match="no item with a wrong choice"):
        TsGuessing(items="none.jsonl").measure(model, ctx)
