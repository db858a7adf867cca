"""Training a tokenizer on the corpus: byte-level BPE, which loses no character of any text."""
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from trainwright.core.errors import UserError

END_OF_TEXT, PADDING, MASK = "<|endoftext|>", "<|padding|>", "<|mask|>"

LONGEST = 1024
"""Characters in a row that are one word to the trainer, at most, whose work grows with the square of a word's
length. The tokenizer that is made knows no such limit."""
RUNS = re.compile(rf"(?<![^ \n])[^ \n]{{{LONGEST + 1},}}|(?<!\s)\s{{{LONGEST + 1},}}")
"""Where a longer word can be: no word has a blank or a line's end within, unless it is all blanks. Letters,
digits and signs are not told apart, about which versions of Unicode differ."""

MOST = 10_000_000
"""Letters of all different words that the trainer is given, each of which takes about 250 bytes there. Beyond
them a word counts only if it was among those before."""


def train(texts: Iterable[str | None], vocab_size: int, controls: Sequence[str] = (),
          mask: bool = False) -> Any:
    """A byte-level BPE that puts ``<|endoftext|>`` before a text; the order of the texts does not matter.

    Args:
        controls: further control tokens.
        mask: whether it has a mask token, ``<|mask|>``.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = list(
        dict.fromkeys([END_OF_TEXT, *([PADDING] if mask else []), *controls, *([MASK] if mask else [])])
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocab_size < len(alphabet) + len(special):
        raise UserError(f"vocab_size = {vocab_size} is too small: 256 bytes and {len(special)} control "
                        "tokens must fit.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(_known(_words(texts)), trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet, show_progress=False))
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END_OF_TEXT} $A", special_tokens=[(END_OF_TEXT, backend.token_to_id(END_OF_TEXT))])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PADDING if mask else None,
        mask_token=MASK if mask else None,
        clean_up_tokenization_spaces=False,
    )


def _words(texts: Iterable[str | None]) -> Iterator[str]:
    """The texts, cut within runs that are too long."""
    for text in texts:
        at = 0
        for run in RUNS.finditer(text or ""):
            yield (text or "")[at:run.start()]
            yield from (run[0][i:i + LONGEST] for i in range(0, len(run[0]), LONGEST))
            at = run.end()
        if text:
            yield text[at:]


def _known(texts: Iterable[str]) -> Iterator[str]:
    """The texts; once they have had too many different words, without words that are new."""
    seen: set[str] = set()
    size = 0
    for text in texts:
        words = text.split()
        new = set(words) - seen
        more = sum(map(len, new))
        if size + more <= MOST:
            seen |= new
            size += more
            yield text
            continue
        for word in dict.fromkeys(words):
            if word in new and size + len(word) <= MOST:
                seen.add(word)
                size += len(word)
        yield " ".join(word for word in words if word in seen)
