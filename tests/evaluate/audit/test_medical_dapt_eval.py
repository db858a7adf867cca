"""Each model has its own prompt; pairs are resampled together; equal models tie."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluate.audit.audits import corpus, small
from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._items import Item
from trainwright.evaluate.audit.medical_dapt_eval import Format, MedicalDaptEval, Way, verdict


def write(file: Path, many: int, first: int = 0) -> None:
    rows = [{"question": f"which one is it {i}", "choices": ["a b", "c d", "e f"], "answer": i % 3}
            for i in range(first, first + many)]
    file.write_text("\n".join(map(json.dumps, rows)))


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    write(tmp_path / "trial.jsonl", 12)
    write(tmp_path / "test.jsonl", 60, 100)
    tokenizer = open_corpus(corpus(tmp_path / "c", documents=12)).tokenizer
    small(max_position_embeddings=512, seed=1).save_pretrained(tmp_path / "base")
    return Context(root=tmp_path, tokenizer=tokenizer, inputs={"base": [tmp_path / "base"]})


def test_pairs_are_resampled_together() -> None:
    """80 items that both or neither solve, and 20 that only one does: a win paired, none unpaired."""
    both = np.tile([1.0, 0.0], 40)
    only = np.arange(20) < 15
    mine, other = np.concatenate([both, only]), np.concatenate([both, ~only])
    told = verdict("x", mine, other, Context())
    assert told["x_gain"] == pytest.approx(0.1)
    assert told["x_win"] == 1 and told["x_tie"] == told["x_loss"] == 0
    deviation = (np.var(mine - other) / 100) ** 0.5
    assert told["x_gain_low"] == pytest.approx(0.1 - 1.96 * deviation, abs=0.015)
    assert (np.var(mine) / 100 + np.var(other) / 100) ** 0.5 * 1.96 > 0.1, "unpaired it would be a tie"
    assert verdict("x", other, mine, Context())["x_loss"] == 1
    assert verdict("x", mine, mine, Context())["x_tie"] == 1


def test_models_that_are_equal_win_as_seldom_as_said() -> None:
    draw = np.random.default_rng(0)
    wins = []
    for seed in range(150):
        a, b = (draw.random(80) < 0.5).astype(float), (draw.random(80) < 0.5).astype(float)
        wins.append(verdict("x", a, b, Context(seed=seed)))
    assert sum(one["x_win"] for one in wins) <= 10, "2.5 % of 150 are 4"


def test_an_answer_is_the_likeliest_letter(ctx: Context) -> None:
    model, how = small(max_position_embeddings=512), MedicalDaptEval(items="x", validation="y", batch_size=4)
    way = Way(Format("Q: {}", "({}) {}", "Answer:"), (Item("so", ("p", "q"), 1),))
    items = [Item(f"what is {i}", ("a", "b", "c"), i % 3) for i in range(6)]
    shown = "Q: so\n(A) p\n(B) q\nAnswer: B\n\n"
    assert way.prompt(items[1]) == f"{shown}Q: what is 1\n(A) a\n(B) b\n(C) c\nAnswer:"
    truth = []
    for item in items:
        ids, scores = families.prompt(model, ctx.tokenizer, way.prompt(item)), []
        for letter in "ABC":
            own = ctx.tokenizer(f" {letter}", add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logp = model(torch.tensor([ids + own])).logits[0].log_softmax(-1)
            scores.append(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(own)))
        truth.append(float(np.argmax(scores) == item.answer))
    assert how.right(model, way, items, ctx).tolist() == truth


def test_each_model_has_the_prompt_that_suits_it(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base that reads one format only, and an adapted model that reads another only, and is no better."""
    how, mine = MedicalDaptEval(items="test.jsonl", validation="trial.jsonl", shots=2), small()
    suits: dict[bool, Format] = {}

    def right(self: Any, model: Any, way: Way, items: Any, ctx: Any) -> np.ndarray:
        assert not set(items) & set(way.shown)
        solved = np.arange(len(items)) % 10 < (8 if way.format == suits[model is mine] else 3)
        return solved.astype(float)

    monkeypatch.setattr(MedicalDaptEval, "right", right)
    ways = how.ways([Item(f"q {i}", ("a", "b"), 0) for i in range(9)], ctx)
    assert len(ways) == 12 and len({way.format for way in ways}) == 4
    suits |= {True: ways[0].format, False: ways[-1].format}
    told = how.measure(mine, ctx)
    assert told["dapt_accuracy"] == told["dapt_base_accuracy"] == 0.8 and told["dapt_tie"] == 1
    assert told["dapt_shared_win"] == 1, "with the adapted model's prompt for both it seems to have won"


def test_too_few_items(ctx: Context) -> None:
    with pytest.raises(UserError, match="has 12 items, and 12 of them are shown"):
        MedicalDaptEval(items="test.jsonl", validation="trial.jsonl", shots=12).measure(small(), ctx)
    with pytest.raises(UserError, match="leaves no room"):
        MedicalDaptEval(items="test.jsonl", validation="trial.jsonl").measure(small(), ctx)
