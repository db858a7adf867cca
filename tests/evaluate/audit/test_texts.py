"""What a model says of the tokens of texts, against the model's own logits."""
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.evaluate.audit.audits import corpus, small
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._texts import Text, Texts, sides, told


def test_moments_are_those_of_the_whole_distribution() -> None:
    """Padding, a prefix and tokens that do not count change nothing else."""
    model, draw = small(40), np.random.default_rng(0)
    texts = [Text(str(n), draw.integers(0, 40, n), np.arange(n) != 3) for n in (9, 2, 17)]
    for prefix in ((), (5, 6, 7)):
        found = told(model, texts, Context(), 2, prefix=prefix)
        brief = told(model, texts, Context(), 3, whole=False, prefix=prefix)
        for text, one, other in zip(texts, found, brief, strict=True):
            ids = torch.tensor([[*prefix, *text.ids]])
            with torch.no_grad():
                logp = model(ids).logits[0].double().log_softmax(-1)
            at = [i for i in range(1, len(text.ids)) if text.counts[i]]
            rows = logp[[len(prefix) + i - 1 for i in at]]
            p = rows.exp()
            mean = (p * rows).sum(1)
            spread = ((p * rows**2).sum(1) - mean**2).sqrt()
            own = rows[range(len(at)), text.ids[at]]
            assert one.ids.tolist() == other.ids.tolist() == text.ids[at].tolist()
            for got, truth in ((one.logp, own), (one.mean, mean), (one.spread, spread), (other.logp, own)):
                assert np.allclose(got, truth.numpy(), atol=1e-4)
            assert np.allclose(one.top, rows.amax(1).numpy(), atol=1e-4)
            best = rows.topk(2).indices.tolist()
            assert one.other.tolist() == [b[0] if b[0] != t else b[1]
                                          for b, t in zip(best, text.ids[at], strict=True)]


def test_both_sides_come_from_their_splits(tmp_path: Path) -> None:
    ctx = Context(inputs={"data": [corpus(tmp_path / "c")]})
    how, read = Texts(documents=7, length=9), open_corpus(tmp_path / "c")
    both = sides(how, "d", small(), ctx, "x")
    for side, split in zip(both, ("train", "test"), strict=True):
        assert len(side) == 7 and {t.id for t in side} <= set(read.select(split).id)
        assert all(len(t.ids) == len(t.counts) <= 10 for t in side)
    with pytest.raises(UserError, match="no domain 'e'"):
        sides(how, "e", small(), ctx, "x")
    with pytest.raises(ValueError, match="length must be positive"):
        Texts(length=0)
