"""The mean of the smallest, by hand; at least one token; sums over the vocabulary in Min-K%++."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.evaluate.audit._texts import Texts, Told
from trainwright.evaluate.audit.min_k_prob import MinKProb


def said(logp: list[float], mean: list[float] | None = None, spread: list[float] | None = None) -> Told:
    return Told(np.arange(len(logp)), np.array(logp), np.array(mean or []), np.array(spread or []),
                np.arange(len(logp)))


def test_the_smallest_by_hand() -> None:
    ten = said([-1.0, -9.0, -2.0, -3.0, -7.0, -1.0, -1.0, -1.0, -1.0, -1.0])
    assert MinKProb().score(ten) == -8.0, "two of ten"
    assert MinKProb(share=0.39).score(ten) == pytest.approx(-19 / 3), "three: floor, not round"
    assert MinKProb(share=1.0).score(ten) == pytest.approx(ten.logp.mean()), "the loss"
    assert MinKProb().score(said([-1.0, -4.0])) == -4.0, "one of two, where the floor is none"


def test_normalized_by_hand() -> None:
    """A token as likely as expected at an even place counts less than one that is unlikely at a sharp one."""
    told = said([-3.0, -3.0, -0.5], mean=[-3.0, -0.5, -0.5], spread=[1.0, 0.5, 0.0])
    how = MinKProb(normalized=True, share=0.34)
    assert how.score(told) == -5.0
    assert MinKProb(normalized=True, share=1.0).score(told) == pytest.approx(-5 / 3)


def test_numbers_of_a_model(tmp_path: Path) -> None:
    ctx = Context(inputs={"data": [corpus(tmp_path / "c")]})
    for how, name in ((MinKProb(texts=Texts(documents=9, length=12)), "min_k_prob"),
                      (MinKProb(normalized=True, texts=Texts(documents=9, length=12)),
                       "min_k_prob_plus")):
        told = how.measure(small(), ctx)
        assert set(told) == {f"{name}_{what}{end}/d" for what in ("auc", "tpr1", "tpr5")
                             for end in ("", "_low", "_high")}
        assert all(0 <= value <= 1 for value in told.values()) and all(how.may_make(n) for n in told)
    with pytest.raises(ValueError, match="at most 1"):
        MinKProb(share=1.1)
