"""Control tokens that say which kind of text follows, as ``phf`` learns them and ``behind_good`` samples."""
from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from trainwright.core.errors import UserError


class Controls(NamedTuple):
    """The ids of the two control tokens."""

    good: int
    bad: int


def controls(model: nn.Module, tokenizer: Any, good: str, bad: str, last: int | None,
             method: str) -> Controls:
    """``last`` and the id before it, where that is said; else those of the tokenizer's tokens; else the
    model's last two ids, which no text has.

    Raises:
        UserError: there is no room for them.
    """
    size: int = model.get_input_embeddings().num_embeddings  # type: ignore[operator]
    words = tokenizer.get_vocab() if tokenizer is not None else {}
    if last is None and good in words and bad in words:
        return Controls(words[good], words[bad])
    known = len(tokenizer) if tokenizer is not None else 0
    found = size - 1 if last is None else last
    if not 1 <= found < size or (last is None and known > found - 1):
        raise UserError(f"{method}: the tokenizer has {known} tokens, none of them {good} and {bad}, and the "
                        f"model {size} ids, so that there is no room for the two: set control_tokens = "
                        f"[\"{good}\", \"{bad}\"] in the corpus stage, make the model with vocab_size = "
                        f"{known + 2}, or set last to an id that no text has.")
    return Controls(found, found - 1)
