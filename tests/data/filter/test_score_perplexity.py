from __future__ import annotations

import math
from pathlib import Path

from tests.corpus.test_selecting import rows
from trainwright.check import documents, tiny
from trainwright.data.filter.score_loss import ScoreLoss
from trainwright.data.filter.score_perplexity import ScorePerplexity


def test_perplexity_is_exp_of_the_loss(tmp_path: Path) -> None:
    loss, perplexity = ({r["id"]: r[name]
                         for r in rows(method.apply(documents.table(), tiny.curating(tmp_path / name)))}
                        for name, method in (("loss", ScoreLoss(length=32)),
                                             ("perplexity", ScorePerplexity(length=32))))
    assert loss.keys() == perplexity.keys()
    assert all(math.isclose(perplexity[i], math.exp(x), rel_tol=1e-9)
               for i, x in loss.items() if x is not None)
