"""Each attack is the formula that it is said to be; the control finds an unfair split and no other."""
from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.evaluate.audit import _attacks
from trainwright.evaluate.audit._attacks import Asked, question, words
from trainwright.evaluate.audit._roc import auc
from trainwright.evaluate.audit._texts import Sides, Text, Texts, told


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    folder = corpus(tmp_path_factory.mktemp("attacks") / "c")
    ctx = Context(inputs={"data": [folder]}, frozen={"reference": small(seed=1)})
    return question("d", small(), Texts(documents=5, length=12), ctx, "x")


def test_formulas(asked: Asked) -> None:
    mean = np.array([one.logp.mean() for one in told(asked.model, asked.texts, asked.ctx, 4)])
    theirs = [o.logp.mean() for o in told(asked.ctx.frozen["reference"], asked.texts, asked.ctx, 4)]
    written = [asked.tokenizer.decode(t.ids, skip_special_tokens=True) for t in asked.texts]
    sizes = [len(zlib.compress(text.encode())) for text in written]
    assert np.allclose(_attacks.loss(asked), mean, atol=1e-5)
    assert np.allclose(_attacks.reference(asked), mean - np.array(theirs), atol=1e-5)
    assert np.allclose(_attacks.packed(asked), mean / np.array(sizes), atol=1e-6)
    prefix = np.concatenate([t.ids for t in asked.spare])[:64 - max(len(t.ids) for t in asked.texts)]
    behind = told(asked.model, asked.texts, asked.ctx, 4, prefix=prefix.tolist())
    ratio = np.array([o.logp.mean() for o in behind]) / mean
    assert len(asked.spare) and np.allclose(_attacks.recall(asked), ratio, atol=1e-5)


def test_neighbours_differ_in_few_tokens_that_count(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Text] = []

    def heard(model: Any, read: list[Text], *rest: Any, **more: Any) -> Any:
        seen.extend(read)
        return told(model, read, *rest, **more)

    found = asked.told(whole=True)
    monkeypatch.setattr(_attacks, "told", heard)
    scores = _attacks.neighbour(asked)
    assert len(seen) == len(asked.texts) * _attacks.NEIGHBOURS
    around = np.array([one.logp.mean() for one in told(asked.model, seen, asked.ctx, 4)])
    mean = np.array([one.logp.mean() for one in found])
    assert np.allclose(scores, mean - around.reshape(len(mean), -1).mean(1), atol=1e-5)
    for i, text in enumerate(asked.texts):
        for near in seen[i * _attacks.NEIGHBOURS:(i + 1) * _attacks.NEIGHBOURS]:
            changed = np.flatnonzero(near.ids != text.ids)
            assert len(changed) == max(1, round(0.15 * (len(text.ids) - 1))) and changed[0] > 0


def bags(draw: np.random.Generator, many: int, shift: int) -> list[Text]:
    return [Text(str(i), draw.integers(shift, 60 + shift, 20), np.ones(20, bool)) for i in range(many)]


def test_the_control_tells_an_unfair_split_from_a_fair_one() -> None:
    draw = np.random.default_rng(4)
    areas = {}
    for name, shift in (("fair", 0), ("unfair", 15)):
        both = Sides(bags(draw, 80, shift), bags(draw, 60, 0))
        scores = np.array(words(Asked(small(), "d", both, Texts(), Context())))
        areas[name] = auc(scores[:80], scores[80:])
    assert 0.38 < areas["fair"] < 0.62 and areas["unfair"] > 0.9
