"""Which ids the control tokens have."""
from __future__ import annotations

import pytest

from trainwright.check import tiny
from trainwright.core.errors import UserError
from trainwright.lm.control_tokens import Controls, controls


class Words:
    """A tokenizer of these tokens."""

    def __init__(self, *names: str) -> None:
        self.names = names

    def get_vocab(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    def __len__(self) -> int:
        return len(self.names)


def test_those_that_are_said_those_of_the_tokenizer_or_the_last() -> None:
    model, size = tiny.model(), tiny.VOCABULARY
    assert controls(model, Words("a", "<bad>", "<good>"), "<good>", "<bad>", None, "t") == Controls(2, 1)
    assert controls(model, Words("a", "<bad>", "<good>"), "<good>", "<bad>", 9, "t") == Controls(9, 8)
    assert controls(model, Words("a", "<good>"), "<good>", "<bad>", None, "t") == Controls(size - 1, size - 2)
    full = Words(*map(str, range(size - 1)))
    for last in (None, 0, size):
        with pytest.raises(UserError, match=f"vocab_size = {size + 1}"):
            controls(model, full, "<good>", "<bad>", last, "t")
