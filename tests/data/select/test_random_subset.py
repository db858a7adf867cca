from __future__ import annotations

from pathlib import Path

import pytest

from tests.corpus.test_selecting import rows
from trainwright.check import documents as made_up
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.data.select.random_subset import RandomSubset


def kept(folder: Path, seed: int = 0, **settings: float) -> set[str]:
    method = RandomSubset(**settings)  # type: ignore[arg-type]
    return {r["id"] for r in rows(method.apply(made_up.table(),
                                               Context(seed=seed, folder=folder / f"{seed}{settings}")))}


def test_shares_are_met_and_contain_each_other(tmp_path: Path) -> None:
    some, more = kept(tmp_path, share=0.25), kept(tmp_path, share=0.5)
    assert len(some) == 30 and len(more) == 60 and some < more
    assert len(kept(tmp_path, count=7)) == 7
    assert 15 < len(kept(tmp_path, seed=1, share=0.5) & more) < 45, "another seed, another half"


def test_more_than_there_are_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"count = 121 is more than the 120 documents"):
        kept(tmp_path, count=121)
