"""The score by hand: first occurrences, the probability and not its logarithm, the cap, smoothed shares."""
from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.corpus.corpora import build
from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._texts import Texts, Told
from trainwright.evaluate.audit.dc_pdd import DcPdd, frequencies


def test_the_score_by_hand() -> None:
    """Token 7 occurs twice: its first place counts, and the mean is over two tokens, not three."""
    told = Told(np.array([7, 2, 7]), np.log([0.5, 0.25, 0.01]), np.zeros(0), np.zeros(0), np.zeros(0, int))
    share = np.full(8, 0.1)
    share[2] = 0.2
    a, b = 0.5 * math.log(10), 0.25 * math.log(5)
    assert DcPdd(cap=9.0).score(told, share) == pytest.approx((a + b) / 2)
    assert DcPdd(cap=0.5).score(told, share) == pytest.approx((0.5 + b) / 2)


def test_frequencies_are_those_of_documents_of_neither_side(tmp_path: Path) -> None:
    read = open_corpus(corpus(tmp_path / "c"))
    found = read.select("tune")
    ids = [t for s, o, n in zip(found.shard, found.offset, found.length, strict=True)
           for t in read.read(int(s), int(o), int(n)).tolist()]
    share = frequencies(read, ("tune",))
    assert share.sum() == pytest.approx(1) and share.min() == pytest.approx(1 / (len(ids) + read.vocab_size))
    most = max(set(ids), key=ids.count)
    assert share[most] == pytest.approx((ids.count(most) + 1) / (len(ids) + read.vocab_size))
    told = DcPdd(texts=Texts(documents=6, length=12)).measure(
        small(), Context(inputs={"data": [tmp_path / "c"]}))
    assert len(told) == 9 and 0 <= told["dc_pdd_auc/d"] <= 1


def test_without_a_reference(tmp_path: Path) -> None:
    build(tmp_path / "c", [{"id": str(i), "text": f"number {i}"} for i in range(8)], tune=0.0, test=0.5)
    with pytest.raises(UserError, match="corpus has none; set tune"):
        DcPdd().measure(small(), Context(inputs={"data": [tmp_path / "c"]}))
