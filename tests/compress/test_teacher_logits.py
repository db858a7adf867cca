"""A teacher's likeliest tokens: kept for documents that are trained on; not all tokens of the vocabulary."""
from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.compress.test_distill import asked  # noqa: F401  (a fixture)
from trainwright.check import tiny
from trainwright.compress.teacher_logits import TeacherLogits
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.tokens import open_corpus


def test_pairs_and_what_is_held_out_have_none(asked: Path) -> None:  # noqa: F811
    corpus = open_corpus(asked)
    for split, may in (("train", True), ("test", False)):
        found = corpus.examples(split)
        told = found.rows(range(len(found)), ["chosen", "teacher"])
        assert {row["teacher"] is not None for row in told if row["chosen"] is None} == {may}
        assert all(row["teacher"] is None for row in told if row["chosen"] is not None)


def test_all_tokens_are_too_many() -> None:
    zeros = torch.zeros(1, 4, dtype=torch.int64)
    batch = {"input_ids": zeros, "targets": zeros, "position_ids": torch.arange(4)[None]}
    words = tiny.model().get_input_embeddings().num_embeddings
    with pytest.raises(UserError, match="leaves none"):
        list(TeacherLogits(top_k=words)._told(tiny.model(), batch, Context()))
