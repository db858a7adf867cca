"""What every text begins with: a control token that stays with the tokenizer.

A tokenizer may put tokens in front of a text (``<s>``). Here one of its own choice of the corpus stage takes
their place, such as the mode of a model that was trained in several (``ul2``). It is part of the tokenizer
and of its chat template, so that whatever reads with it begins alike: documents, conversations, prompts,
questions and ``generate``, here and with every model that is trained on the corpus. It is read, never
learned, and takes the place of a token, so that as many tokens are targets as without it; behind a
tokenizer that puts nothing in front, the first token of each text becomes one.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainwright.core.errors import UserError
from trainwright.families import front, suffix


def add(tokenizer: Any, names: Sequence[str]) -> None:
    """Give a tokenizer control tokens that it lacks."""
    from tokenizers import AddedToken
    known = tokenizer.get_vocab()
    missing = [AddedToken(n, special=True, normalized=False) for n in names if n not in known]
    if missing:
        tokenizer.add_tokens(missing, special_tokens=True)


def begin(tokenizer: Any, prefix: str) -> None:
    """Let every text that a tokenizer reads begin with this token, in place of what it began with.

    Raises:
        UserError: it has no such token.
    """
    from tokenizers import processors
    if tokenizer(prefix, add_special_tokens=False)["input_ids"] != [tokenizer.get_vocab().get(prefix)]:
        raise UserError(f"prefix = {prefix!r} is no token of the tokenizer: name it in control_tokens too.")
    if tokenizer.chat_template is not None:
        tokenizer.chat_template = tokenizer.chat_template.removeprefix(begun_with(tokenizer))
    behind = tokenizer.convert_ids_to_tokens(suffix(tokenizer))
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys([prefix, *behind])]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=[prefix, "$A", *behind], special_tokens=named
    )


def begun_with(tokenizer: Any) -> str:
    """The token that ``begin`` has put in front of all texts; empty where nothing or a usual one stands
    there."""
    usual = {tokenizer.bos_token_id, tokenizer.cls_token_id}
    found = [i for i in front(tokenizer) if i not in usual]
    return "".join(tokenizer.convert_ids_to_tokens(found[:1]))


def template(tokenizer: Any, talk: str) -> str:
    """A chat template under which conversations begin as all texts do."""
    prefix = begun_with(tokenizer)
    return talk if talk.startswith(prefix) else prefix + talk
