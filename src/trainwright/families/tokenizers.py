"""Tokenizers: read from a folder, and which of their tokens end a text, a turn, or what a model writes."""
from __future__ import annotations

from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Thread
from typing import Any

from torch import nn

from trainwright.core.errors import UserError
from trainwright.families.base import is_pretrained
from trainwright.families.libraries import first_line, quiet

WORDS = (
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)
"""Files by which a folder is known to hold a tokenizer."""
SAYS = "generation_config.json"
"""The file that says how a model writes."""
ANSWER = "qx"
"""What the assistant says where a template is asked how a turn ends."""
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ANSWER}]
LONG = [turn | {"content": "a word and another " * 200} for _ in range(16) for turn in TALK]
"""A talk of many turns, each of a page."""
PATIENCE = 20.0
"""Seconds for a template to write both, which takes milliseconds."""


def load_tokenizer(location: str | Path, where: str) -> Any:
    """The tokenizer in a folder (a checkpoint or a corpus) or of a Hub name, or None where there is none.

    Raises:
        UserError: it cannot be read, has no entries, or a chat template that comes to no end.
    """
    from transformers import AutoTokenizer
    quiet()
    not_here(str(location), where)
    if isinstance(location, Path) and not any((location / file).is_file() for file in WORDS):
        return None
    try:
        made = AutoTokenizer.from_pretrained(str(location).removeprefix("hf://"), trust_remote_code=False)
    except Exception as error:
        told = first_line(error)
        if isinstance(location, Path) and (pieces := _pieces(location)):
            told = (
                f"{pieces} is of SentencePiece, and there is no tokenizer.json: convert it once, where "
                f"sentencepiece "
                "is installed, with AutoTokenizer.from_pretrained(…).save_pretrained(…) of transformers."
            )
        raise UserError(f"{where}: cannot load the tokenizer of {location}: {told}") from None
    if not made.vocab_size:
        raise UserError(f"{where}: the tokenizer of {location} has no entries: its files are not whole.")
    if made.chat_template is not None and not _ends(_Template(made)):
        raise UserError(f"{where}: the chat template of {location} comes to no end: a short talk and "
                        f"a long one were not written in {PATIENCE:g} seconds. Remove or replace it.")
    return made


def not_here(name: str, where: str) -> None:
    """Refuse a name of the Hub that a folder here has too: transformers would read that.

    Raises:
        UserError: there is such a folder.
    """
    if name.startswith("hf://") and Path(name.removeprefix("hf://")).exists():
        raise UserError(f"{where}: {name} is also the name of a folder here, which would be read in its "
                        "place: start the command elsewhere, or name the folder itself.")


def _pieces(folder: Path) -> str:
    """The file of a folder's tokenizer, where it is one of SentencePiece alone."""
    found = next((f for f in WORDS if (folder / f).is_file()), "")
    return found if found.endswith(".model") else ""


# ---- what begins and ends a text ------------------------------------------------------------------------


def suffix(tokenizer: Any) -> list[int]:
    """What a tokenizer puts behind a text, such as BERT's ``[SEP]``."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i:i + len(plain)] == plain), len(whole))
    return list(whole[start + len(plain):])


def front(tokenizer: Any) -> list[int]:
    """What a tokenizer puts in front of a text, such as BERT's ``[CLS]``."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(whole)) if whole[i:i + len(plain)] == plain), 0)
    return list(whole[:start])


def prompt(model: Any, tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text that something is to be written behind: without what would end it, unless an
    encoder reads it whole."""
    behind, ids = suffix(tokenizer), list(tokenizer(text)["input_ids"])
    if model.config.is_encoder_decoder:
        return ids
    return ids[:-len(behind)] if behind and ids[-len(behind):] == behind else ids


# ---- what ends a turn -----------------------------------------------------------------------------------


def turn_end(tokenizer: Any) -> int | None:
    """The special token behind what the assistant says in a tokenizer's chat template, if there is one."""
    if tokenizer is None or tokenizer.chat_template is None:
        return None
    return _turn_end(_Template(tokenizer))


class _Template:
    """A tokenizer as the key of a cache."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.text = repr((tokenizer.chat_template, sorted(tokenizer.added_tokens_decoder)))

    def __hash__(self) -> int:
        return hash(self.text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Template) and other.text == self.text


@cache
def _ends(of: _Template) -> bool:
    """Whether the template writes a short talk and a long one in good time. It is a stranger's program, in a
    sandbox that bounds each of its loops and not all of them together."""

    def write() -> None:
        for talk in (TALK, LONG):
            with suppress(Exception):                      # what is wrong is told where it is used
                of.tokenizer.apply_chat_template(talk, tokenize=False)

    writer = Thread(target=write, daemon=True)
    writer.start()
    writer.join(PATIENCE)
    return not writer.is_alive()


@cache
def _turn_end(of: _Template) -> int | None:
    tokenizer = of.tokenizer
    try:
        said = tokenizer.apply_chat_template(TALK, tokenize=False)
    except Exception:                                      # a template of conversations of another kind
        return None
    behind = said.rpartition(ANSWER)[2].lstrip()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(behind, add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in special else None


def stop_at(model: nn.Module, tokenizer: Any) -> None:
    """Let a model's configs name every token at which what it writes ends, for whoever lets it write: those
    that they name already, the end of a text, and the end of the assistant's turn."""
    how: Any = getattr(model, "generation_config", None)
    if not is_pretrained(model) or how is None or tokenizer is None:
        return
    config: Any = model.config
    found: list[int] = []
    for told in (
        how.eos_token_id,
        getattr(config, "eos_token_id", None),
        tokenizer.eos_token_id,
        turn_end(tokenizer),
    ):
        found += [n for n in (told if isinstance(told, list) else [told]) if n is not None and n not in found]
    if found:
        config.eos_token_id = how.eos_token_id = found if len(found) > 1 else found[0]
