"""The end of text of a tokenizer that does not say which of its tokens that is."""
from __future__ import annotations

from typing import Any

from trainwright.core.errors import UserError

ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")
"""Control tokens that end a text, in tokenizers that do not say which one does."""


def give_end(tokenizer: Any) -> str | None:
    """Give a tokenizer an end of text where it names none; returns the control token that is taken for it, or
    None where nothing was to be done.

    Raises:
        UserError: nothing of what it has is known to be one.
    """
    if tokenizer.eos_token_id is not None:
        return None
    special = {token.content: i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer.backend_tokenizer.encode("a").ids
    if ids and ids[-1] in special.values():
        return None                                    # it puts an end behind each text itself
    for name in ENDS:
        if name in special:
            tokenizer.eos_token = name
            return name
    raise UserError(
        f"the tokenizer in {tokenizer.name_or_path} names no end of text, so that documents would run "
        "into one another: say which of its tokens it is, as eos_token in its tokenizer_config.json."
    )
