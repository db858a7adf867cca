from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.corpus.test_selecting import rows
from trainwright.check import documents, tiny
from trainwright.core.errors import UserError
from trainwright.data.filter.embed import Embed


def test_every_document_gets_a_vector_as_wide_as_the_model(tmp_path: Path) -> None:
    made = rows(Embed(column="place", length=32).apply(documents.table(), tiny.curating(tmp_path)))
    assert len(made) == 120 and {len(r["place"]) for r in made} == {16}


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is not None,
                    reason="the package is installed")
def test_a_library_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sentence-transformers: pip install"):
        Embed(library="any").apply(documents.table(), tiny.curating(tmp_path))
