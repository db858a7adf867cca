"""Exact matches: a model that has learned the answers has them all, one that has not has none."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.corpus.corpora import build
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.sources.physics_of_lms_3_1 import QUESTIONS, PhysicsOfLms_3_1, people
from trainwright.evaluate.knowledge_extraction import KnowledgeExtraction, exact


def corpus(folder: Path, people: int = 4) -> Context:
    """A corpus of a few biographies and questions, and what an evaluator is given of it."""
    build(folder / "c", None, PhysicsOfLms_3_1(people=people), tune=0.0, test=0.0)
    return Context(inputs={"data": [folder / "c"]}, tokenizer=open_corpus(folder / "c").tokenizer)


def fresh(tokenizer: Any, positions: int = 256) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=48,
                intermediate_size=96,
                num_hidden_layers=2,
                num_attention_heads=2,
                max_position_embeddings=positions,
                eos_token_id=tokenizer.eos_token_id,
            )
        )


@cache
def answers() -> dict[str, str]:
    """Question to answer, for all four people."""
    return {
        f"{QUESTIONS[a].format(name=p.name)}\nAnswer:": value
        for p in people(4, 0)
        for a, value in p.facts.items()
    }


def test_an_answer_must_be_right_to_the_letter() -> None:
    assert exact(" October 2, 1996.\nWhat", "October 2, 1996") and exact("Applied Music", "Applied Music.")
    for said in (
        "",
        "\n",
        "October 2, 1997",
        "october 2, 1996",
        "It is October 2, 1996",
        "October 2, 1996, I think",
    ):
        assert not exact(said, "October 2, 1996")


def test_each_attribute_is_counted_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainwright.lm import generation

    ctx = corpus(tmp_path)
    asked: list[str] = []

    def knowing(model: Any, tokenizer: Any, prompts: list[generation.Prompt], ctx: Any, *,
                batch_size: int) -> list[list[int]]:
        assert len(prompts) <= batch_size and not any(p.temperature for p in prompts)
        texts = [tokenizer.decode(p.ids, skip_special_tokens=True) for p in prompts]
        asked.extend(texts)
        said = [f" {answers()[t]}." if "major" in t else "No." for t in texts]
        return [tokenizer(text, add_special_tokens=False)["input_ids"] for text in said]

    monkeypatch.setattr(generation, "written", knowing)
    found = KnowledgeExtraction(batch_size=5).measure(model := fresh(ctx.tokenizer), ctx)
    likely = {name: found.pop(name) for name in list(found) if name.startswith("answer_loss")}
    assert found.pop("exact_match/mean") == pytest.approx(1 / 6)
    assert found == {f"exact_match/{a}": float(a == "major") for a in QUESTIONS}
    known = [json.loads(line)["name"] for line in _metadata(tmp_path / "c", "qa")]
    assert len(set(asked)) == len(asked) == 12 and not any(name in t for name in known for t in asked)
    assert likely == pytest.approx(_lone_losses(model, ctx.tokenizer, tmp_path / "c"), rel=1e-5)
    asked.clear()
    KnowledgeExtraction(most=1).measure(fresh(ctx.tokenizer), ctx)
    assert len(asked) == 6


def _lone_losses(model: Any, tokenizer: Any, folder: Path) -> dict[str, float]:
    """Nats of each answer, one question at a time through the model's own loss."""
    told: dict[str, list[float]] = {}
    for known in map(json.loads, _metadata(folder, "qa_test")):
        prompt = tokenizer(known["question"])["input_ids"]
        ids = tokenizer(f"{known['question']} {known['answer']}.")["input_ids"]
        labels = torch.tensor([[-100] * len(prompt) + ids[len(prompt) :]])
        with torch.no_grad():
            mean = model.eval()(input_ids=torch.tensor([ids]), labels=labels).loss
        told.setdefault(f"answer_loss/{known['attribute']}", []).append(
            float(mean) * (len(ids) - len(prompt))
        )
    means = {name: sum(found) / len(found) for name, found in told.items()}
    return means | {"answer_loss/mean": sum(means.values()) / len(means)}


def _metadata(folder: Path, domain: str) -> list[str]:
    import pyarrow.parquet as pq

    rows = [r for f in (folder / "documents").glob("*.parquet") for r in pq.read_table(f).to_pylist()]
    return [r["metadata"] for r in rows if r["domain"] == domain]


@pytest.mark.slow
def test_what_was_learned_by_heart_is_extracted(tmp_path: Path) -> None:
    ctx = corpus(tmp_path, people=2)
    model, tokenizer = fresh(ctx.tokenizer), ctx.tokenizer
    texts = [f"{q} {a}.{tokenizer.eos_token}" for q, a in list(answers().items())[:12]]
    rows = [torch.tensor(tokenizer(t)["input_ids"]) for t in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=0)
    labels = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
    before = KnowledgeExtraction().measure(model, ctx)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(80):
        optimizer.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
    after = KnowledgeExtraction().measure(model, ctx)
    assert before["exact_match/mean"] == 0.0 and after["exact_match/mean"] > 0.9
    assert after["answer_loss/mean"] < 0.2 * before["answer_loss/mean"]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    ctx = corpus(tmp_path)
    model = fresh(ctx.tokenizer)
    for settings, why in (
        ({"domain": "qa_tests"}, "no domain 'qa_tests' .did you mean 'qa_test'"),
        ({"domain": "bio"}, "is a question"),
        ({"split": "test"}, "no 'test' document in qa_test"),
        ({"new_tokens": 250}, "more than the 256 positions"),
    ):
        with pytest.raises(UserError, match=why):
            KnowledgeExtraction(**settings).measure(model, ctx)
    with pytest.raises(UserError, match="tokenizer"):
        KnowledgeExtraction().measure(model, Context(inputs=ctx.inputs))
    with pytest.raises(ValueError, match="most"):
        KnowledgeExtraction(most=0)
