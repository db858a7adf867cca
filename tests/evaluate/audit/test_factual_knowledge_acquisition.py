"""The forgetting law by hand; what is injected, where and when; what is known, against the model's logits."""
from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from tests.corpus.corpora import build, texts
from tests.evaluate.audit.audits import small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.pack import Pack
from trainwright.evaluate.audit._inventions import LEVELS, invented
from trainwright.evaluate.audit.factual_knowledge_acquisition import (
    CONDITIONS,
    FactualKnowledgeAcquisition,
    forgetting,
    packed,
)


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    folder = tmp_path_factory.mktemp("facts") / "c"
    build(folder, texts(40), tune=0.0, test=0.0)
    return Context(inputs={"data": [folder]}, batch_rows=16, steps=6, seed=1,
                   tokenizer=open_corpus(folder).tokenizer)


def test_the_law_by_hand() -> None:
    """Two injections; the best is two steps behind the last, and 0.2 of what was gained goes with each factor
    of ten from there: R = 0.9 - 0.2 log10 t, which is 0 at 10^4.5."""
    steps = np.arange(0, 113)
    later = -5 + 3.0 * (0.9 - 0.2 * np.log10(np.maximum(steps - 12, 1)))
    one = np.where(steps < 2, -5.0, np.where(steps < 11, -4.0, np.where(steps == 12, -2.0, later)))
    logp = np.stack([one, one, np.full(113, -5.0)], 1)                 # the third is never gained
    told = forgetting(steps, logp, (0, 10), 50)
    assert told["decay"] == pytest.approx(0.2) and told["lost"] == pytest.approx(4.5)
    first, second = 1.0, 2.0                                           # from -5 to -4, from -4 to -2
    assert told["effectivity"] == pytest.approx((2 * (first + second) / 2 + 0) / 3)
    assert forgetting(steps[:13], logp[:13], (0, 10), 50).keys() == {"effectivity"}, "nothing came after"
    rising = np.linspace(-5, -4, 113)[:, None]
    assert "lost" not in forgetting(steps, rising, (0,), 3), "what grows is never lost"


def test_facts_are_all_different() -> None:
    facts = invented(40, Context().rng("x"))
    assert len({fact.passages[0] for fact in facts}) == 40
    for fact in facts:
        begins = [p.prompt + p.target for p in fact.probes["memorization"]]
        assert all(fact.passages[0].startswith(one) for one in begins)
        others = [p for level in LEVELS[1:] for p in fact.probes[level]]
        assert not any(p.prompt + p.target in text for p in others for text in fact.passages)
        assert all(p.target.strip() in text for p in others for text in fact.passages)


def test_passages_replace_rows_at_their_steps(ctx: Context) -> None:
    ctx, pack, method = copy.copy(ctx), Pack(length=64), FactualKnowledgeAcquisition(at=(1, 3), facts=8)
    plain = copy.copy(ctx)
    states = pack.init(small(), ctx), pack.init(small(), plain)
    facts, end = method.invented(ctx), ctx.tokenizer.eos_token
    for step in range(5):
        ctx.step = plain.step = step
        before = pack.next(None, states[1], plain)  # type: ignore[arg-type]
        batch = method.next(lambda: pack.next(None, states[0], ctx), {"shared": {}}, ctx)  # type: ignore[arg-type]
        changed = (batch["input_ids"] != before["input_ids"]).any(1)
        assert batch["input_ids"].shape == before["input_ids"].shape
        assert bool(changed.any()) == (step in (1, 3))
        there = " ".join(ctx.tokenizer.decode(row) for row in batch["input_ids"][changed])
        for i, fact in enumerate(facts):
            condition = CONDITIONS[i % 4]
            want = {"duplicate": 0, "paraphrase": step // 2, "once": 0 if step == 1 else None, "never": None}
            for k, passage in enumerate(fact.passages):
                assert (passage in there) == (step in (1, 3) and want[condition] == k)
    assert end not in there


def test_rows_are_documents_apart() -> None:
    [first, second] = packed([[1, 2, 3, 9], [4, 5, 9], [6, 7, 8, 5, 4, 9]], 6)
    assert first["input_ids"].tolist() == [1, 2, 3, 4, 5, 0]
    assert first["document"].tolist() == [0, 0, 0, 1, 1, -1]
    assert first["targets"].tolist() == [2, 3, 9, 5, 9, -100]
    assert first["position_ids"].tolist() == [0, 1, 2, 0, 1, 2]
    assert second["input_ids"].tolist() == [6, 7, 8, 5, 4, 0]
    [begin, rest] = packed([[1, 2, 3, 4, 5, 6, 7, 8, 9]], 6)
    assert begin["targets"].tolist() == [2, 3, 4, 5, 6, 7]
    assert rest["input_ids"].tolist() == [7, 8, 0, 0, 0, 0]
    assert len(packed([[1, 2], [3, 4]], 6, alone=True)) == 2


def test_what_is_known_and_what_is_told(ctx: Context) -> None:
    ctx, model, method = copy.copy(ctx), small(), FactualKnowledgeAcquisition(at=(1,), facts=4, every=2)
    found, fact = method.known(model, ctx), method.invented(ctx)[2]
    truth = []
    for prompt, target in fact.probes["composition"]:
        begin = ctx.tokenizer(prompt)["input_ids"]
        rest = ctx.tokenizer(target, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([begin + rest])).logits[0].log_softmax(-1)
        truth.append(np.mean([float(logp[len(begin) - 1 + k, t]) for k, t in enumerate(rest)]))
    assert found["composition"][2] == pytest.approx(np.mean(truth), abs=1e-5)
    assert method.measure(model, ctx)["fact_logp_composition/once"] == pytest.approx(found["composition"][2])
    ctx.policy, state, pack = model, method.init(model, ctx), Pack(length=64)
    rows = pack.init(model, ctx)
    for ctx.step in range(6):
        ctx.notes = {}
        method.next(lambda: pack.next(None, rows, ctx), state, ctx)  # type: ignore[arg-type]
    assert state["shared"]["steps"] == [0, 1, 2, 4, 5] and "fact_effectivity_memorization/never" in ctx.notes
    for settings, why in (({"at": (3, 1)}, "rising order"), ({"at": ()}, "rising order")):
        with pytest.raises(ValueError, match=why):
            FactualKnowledgeAcquisition(**settings)
    with pytest.raises(UserError, match="the stage has 6 steps"):
        FactualKnowledgeAcquisition(at=(6,)).init(model, ctx)
    with pytest.raises(UserError, match="more than the 16 of a step"):
        ctx.step = 1
        FactualKnowledgeAcquisition(at=(1,), facts=120).next(
            lambda: pack.next(None, rows, ctx), state, copy.copy(ctx))  # type: ignore[arg-type]
