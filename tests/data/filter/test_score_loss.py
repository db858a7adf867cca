from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.test_selecting import rows
from trainwright.check import documents, tiny
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.filter.score_loss import ScoreLoss
from trainwright.data.filter.score_perplexity import ScorePerplexity


def test_the_column_is_added_and_nothing_else(tmp_path: Path) -> None:
    made = rows(ScoreLoss(column="hard", length=32).apply(documents.table(), tiny.curating(tmp_path)))
    # about ln 300 before training
    assert len(made) == 120 and all(3 < r["hard"] < 9 for r in made if r["messages"] is None)
    assert {k: v for k, v in made[0].items() if k != "hard"} in rows(documents.table())


def test_without_a_model_the_stage_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the stage needs one artifact as 'model'"):
        ScoreLoss().apply(documents.table(), Context(folder=tmp_path))
    with pytest.raises(ValueError, match="must be positive"):
        ScorePerplexity(length=0)
