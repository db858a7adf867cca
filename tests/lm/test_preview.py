"""A batch is shown as what is read and what is learned."""

from __future__ import annotations

import pytest
import torch

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED
from trainwright.lm.preview import preview


def test_what_is_trained_stands_between_marks() -> None:
    ids = tiny.tokenizer()("rain falls", add_special_tokens=False)["input_ids"]
    targets = [UNTRAINED] * (len(ids) - 2) + [ids[-1], UNTRAINED]
    batch = {"input_ids": torch.tensor([ids]), "targets": torch.tensor([targets]),
             "document": torch.zeros(1, len(ids), dtype=torch.int64)}
    last = tiny.tokenizer().decode(ids[-1:])
    assert preview(batch, tiny.tokenizer()) == f"{tiny.tokenizer().decode(ids[:-1])}⟦{last}⟧"
    with pytest.raises(UserError, match=r"tokens and no tokenizer\.json"):
        preview(batch, None)
