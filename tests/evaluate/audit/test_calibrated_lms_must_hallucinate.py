"""Rates by hand; a calibrated generator invents at least as often as the bound says; the path on a model."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.corpus.corpora import build
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit import calibrated_lms_must_hallucinate as module
from trainwright.evaluate.audit.calibrated_lms_must_hallucinate import (
    CalibratedLmsMustHallucinate,
    miscalibration,
    monofact_rate,
)
from trainwright.lm.generation import Sampled


def test_rates_by_hand() -> None:
    assert monofact_rate(["a", "b", "b", "c"]) == 0.5, "of four statements, not of three facts"
    said = np.log([0.1] * 5 + [0.01] * 5)
    assert miscalibration(said, said, 2) == 0.0
    assert miscalibration(said, np.log([0.1] * 4), 2) == 0.5, "half of what it says is likelier than its due"
    assert miscalibration(said, np.log([1e-9, 0.1]), 2) == 0.0, "both halves as often"


def test_a_calibrated_generator_invents_as_often_as_it_must() -> None:
    """Facts of a distribution with a long tail. A generator that says each fact as often as training did, but
    those that occurred once, and in their place anything of their kind, is calibrated up to noise."""
    draw = np.random.default_rng(0)
    p = 1 / np.arange(1, 20001) ** 1.1
    p /= p.sum()
    facts = draw.choice(len(p), 4000, p=p)
    counts = np.bincount(facts, minlength=len(p))
    once = monofact_rate(list(map(str, facts)))
    missing = p[counts == 0].sum()
    assert abs(once - missing) < 0.03, "Good and Turing"
    often = np.where(counts > 1, counts, 0) / 4000
    false = 1 - often.sum()
    assert false == pytest.approx(once) and false >= once - 7 / 4000**0.5


def test_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples that are given by hand: of eight, three are false; the bound is what the formula says."""
    words = ["one", "two", "two", "six", "ten", "six", "red", "blue", "tin", "oak"]
    facts = [f"the key is {w}" for w in words]
    rows = [{"id": str(i), "text": t, "domain": "facts"} for i, t in enumerate(facts)]
    build(tmp_path / "c", rows, tune=0.0, test=0.4)
    corpus = open_corpus(tmp_path / "c")
    ctx = Context(inputs={"data": [tmp_path / "c"]}, tokenizer=corpus.tokenizer, root=tmp_path)
    (tmp_path / "more.txt").write_text("the key is gold\n")
    said = ["one", "six", "two", "gold", "oak", "mud", "ice", "fog"]

    def given(model: Any, tokenizer: Any, prompts: Any, ctx: Any, *, batch_size: int) -> list[Sampled]:
        assert tokenizer.decode(prompts[0].ids, skip_special_tokens=True) == "the key is"
        assert all(p.temperature == 1.0 for p in prompts) and len({p.seed for p in prompts}) == 8
        ids = [tokenizer(f" {w}", add_special_tokens=False)["input_ids"] for w in said]
        return [Sampled(one, [-1.0, -2.0]) for one in ids]

    monkeypatch.setattr(module, "sampled", given)
    how = CalibratedLmsMustHallucinate(start="the key is", facts="more.txt", samples=8, bins=2)
    told = how.measure(small(), ctx)
    assert told["hallucination_rate"] == 3 / 8 and told["hallucination_rate_low"] < 3 / 8
    seen = [facts[int(i)] for i in corpus.select("train").id]
    held = [facts[int(i)] for i in corpus.select("test").id]
    assert told["monofact_rate"] == monofact_rate(seen)
    assert told["missing_mass"] == sum(t not in seen for t in held) / len(held)
    assert told["hallucination_bound"] == pytest.approx(
        told["monofact_rate"] - told["miscalibration"] - 300e-6 - 7 / len(seen) ** 0.5)
    with pytest.raises(UserError, match="begins with start = 'a key'"):
        CalibratedLmsMustHallucinate(start="a key").measure(small(), ctx)


def test_samples_and_facts_have_one_probability(tmp_path: Path) -> None:
    """What is sampled, given back as a fact, has the log-probability that it was sampled with."""
    rows = [{"id": str(i), "text": f"it is {i}", "domain": "facts"} for i in range(12)]
    build(tmp_path / "c", rows, tune=0.0, test=0.3)
    ctx = Context(inputs={"data": [tmp_path / "c"]}, tokenizer=open_corpus(tmp_path / "c").tokenizer)
    how, model = CalibratedLmsMustHallucinate(start="it is", samples=4, new_tokens=40), small()
    ids = ctx.tokenizer(" 7", add_special_tokens=False)["input_ids"] + [ctx.tokenizer.eos_token_id]
    found = how._logp(model, ["it is 7"], ctx)
    begin = ctx.tokenizer("it is")["input_ids"]
    with torch.no_grad():
        logp = model(torch.tensor([begin + ids])).logits[0].log_softmax(-1)
    truth = sum(float(logp[len(begin) - 1 + k, t]) for k, t in enumerate(ids))
    assert found[0] == pytest.approx(truth, abs=1e-4)
    assert 0 <= how.measure(model, ctx)["hallucination_rate"] <= 1
