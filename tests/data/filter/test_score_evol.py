"""Grades are expectations over the next token, and a conversation's score the sum of the products over its
turns."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tests.data.frames import frame, told
from trainwright import families
from trainwright.check import tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.score_evol import GRADES, PROMPTS, ScoreEvol, combined
from trainwright.data.select.best import Best
from trainwright.data.select.deita import Deita
from trainwright.lm.grading import Grader

SHORT = {"complexity": "Rate {instruction}", "quality": "Judge {instruction}: {response}"}


def talk(*said: str) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(said)
    return [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]


def saved(folder: Path, chances: dict[str, float] | None = None, seed: int = 0) -> Path:
    """A tiny model; with ``chances``, it gives these answers these probabilities whatever came before."""
    model, tokenizer = tiny.model(seed=seed), tiny.tokenizer()
    if chances:
        rest = (1 - sum(chances.values())) / (tiny.VOCABULARY - len(chances))
        wanted = torch.full((tiny.VOCABULARY,), rest)
        for answer, chance in chances.items():
            wanted[tokenizer(answer, add_special_tokens=False)["input_ids"][-1]] = chance
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.fill_(float("norm" in name or "embed" in name))  # every last state is a row of ones
            model.lm_head.weight.copy_(wanted.log()[:, None].expand(-1, 16) / 16)
    families.save(model, folder, tokenizer)
    return folder


def context(folder: Path, **models: Path) -> Context:
    folder.mkdir()
    inputs = {"models": list(models.values()), "model": list(models.values())[:1]}
    return Context(inputs=inputs, names={"models": list(models)}, folder=folder)


def test_the_grade_is_an_expectation_by_hand(tmp_path: Path) -> None:
    """A model that gives 2 with 3/10, 5 with 1/10 and every other grade with 1/20 of the probability: the
    rest goes elsewhere and does not count."""
    (tmp_path / "m").mkdir()
    known = {"1": 0.05, "2": 0.3, "3": 0.05, "4": 0.05, "5": 0.1, "6": 0.05}
    model = saved(tmp_path / "m", known)
    by_hand = sum(float(k) * p for k, p in known.items()) / sum(known.values())
    made = told(ScoreEvol().apply(frame([{"id": "one", "messages": talk("Why?", "So.")},
                                         {"id": "two", "messages": talk("Why?", "So.", "And?", "No.")},
                                         {"id": "plain", "text": "none"}]), context(tmp_path / "s", m=model)))
    assert by_hand == pytest.approx(3.0) and made["one"]["evol"] == pytest.approx(9.0, rel=1e-5)
    assert made["one"]["complexity"] == pytest.approx(3.0, rel=1e-5)
    assert made["two"]["evol"] == pytest.approx(18.0, rel=1e-5), "a sum over turns"
    assert all(made["plain"][name] is None for name in ("complexity", "quality", "evol"))


def reference(model: Any, tokenizer: Any, prompt: str) -> float:
    """One prompt at a time, from the model's own logits."""
    text = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True,
                                         tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    six = torch.tensor([tokenizer(k, add_special_tokens=False)["input_ids"][-1] for k in GRADES])
    return float((logits[six].softmax(0) * torch.arange(1, 7)).sum())


def test_two_scorers_each_of_its_own_part(tmp_path: Path) -> None:
    """Against each model asked alone: complexity of the instruction, quality of it with its answer."""
    folders = {}
    for seed, name in enumerate(("c", "q")):
        (tmp_path / name).mkdir()
        folders[name] = saved(tmp_path / name, seed=seed)
    said = [["the farmer sows", "rain falls"], ["how many apples", "two", "what of wheat", "none at all"],
            ["def", "return"]]
    rows = frame([{"id": str(i), "messages": talk(*one)} for i, one in enumerate(said)])
    how = ScoreEvol(complexity_by="c", quality_by="q", prompts=SHORT, batch_tokens=64)
    made = told(how.apply(rows, context(tmp_path / "s", **folders)))
    models = {n: families.load(f, "test").eval() for n, f in folders.items()}
    for i, one in enumerate(said):
        pairs = list(zip(one[::2], one[1::2], strict=True))
        c = [reference(models["c"], tiny.tokenizer(), f"Rate {a}") for a, _ in pairs]
        q = [reference(models["q"], tiny.tokenizer(), f"Judge {a}: {b}") for a, b in pairs]
        row = made[str(i)]
        assert row["evol"] == pytest.approx(np.dot(c, q), rel=1e-4)
        assert row["complexity"] == pytest.approx(np.mean(c), rel=1e-4)
        assert row["quality"] == pytest.approx(np.mean(q), rel=1e-4)


def test_the_sum_of_products_is_not_the_product_of_means() -> None:
    """Two turns graded 6·1 and 1·6 are worth 12; means would make it 12.25, and of one turn 3.5·3.5 too."""
    found = combined(pa.table({"id": ["a", "b"], "grades": [[6.0, 1.0], []]}),
                     pa.table({"id": ["b", "a"], "grades": [[], [1.0, 6.0]]})).to_pylist()
    assert found == [{"id": "a", "complexity": 3.5, "quality": 3.5, "evol": 12.0},
                     {"id": "b", "complexity": None, "quality": None, "evol": None}]


def test_any_selection_takes_the_columns(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    ctx = context(tmp_path / "s", m=saved(tmp_path / "m", seed=2))
    rows = frame([{"id": str(i), "messages": talk(*["apples", "rain"] * n)} for i, n in enumerate((1, 3, 2))],
                 embedding=np.eye(3).tolist())
    scored = ScoreEvol(prompts=SHORT).apply(rows, ctx)
    for number, how in enumerate((Deita(scores=("evol",), count=2), Best(column="evol", count=2),
                                  Deita(scores=("complexity", "quality"), count=3))):
        (folder := tmp_path / f"{number}").mkdir()
        made = told(how.apply(scored, Context(folder=folder)))
        assert set(made) == ({"1", "2"} if number < 2 else {"0", "1", "2"}), "more turns, a larger sum"


def test_mistakes_are_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no prompt 'kindness'"):
        ScoreEvol(prompts={"kindness": "x"})
    with pytest.raises(ValueError, match=r"'quality' lacks \{response\}"):
        ScoreEvol(prompts={"quality": PROMPTS["complexity"]})
    (tmp_path / "m").mkdir()
    model = saved(tmp_path / "m")
    with pytest.raises(UserError, match="'yes', 'yes no'"):
        Grader.of(model, {"yes": 1.0, "yes no": 0.0}, context(tmp_path / "a", m=model), "t", 8, 8)
    with pytest.raises(UserError, match="'n'"):
        ScoreEvol(complexity_by="n").apply(frame([{"id": "0"}]), context(tmp_path / "b", m=model))
