"""Whole-word masking: hide some words of each row, which the model is to fill in.

"BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding" (arXiv 1810.04805), with
whole words as in its later release and in "Domain-Specific Language Model Pretraining for Biomedical Natural
Language Processing" (PubMedBERT, arXiv 2007.15779). Of the n tokens of a row,

    k = max(1, round(rate * n))

are chosen by words in random order: a word is taken if all of its tokens still fit into k. Each chosen token
is then replaced by the mask token (80 %), by a random token (10 %) or by itself (10 %), and is a target.

A word is a run of letters and digits, however many tokens it takes; every other token is a word of its own.
Where it ends is read from the tokenizer: ``##`` continues a word in WordPiece, a leading space begins one
elsewhere. Special tokens and padding are never chosen, and a random token is never special.

It pulls rows with ``input_ids`` (int64 [R, L]) and either ``attention_mask`` or ``document`` (-1 for
padding). It sets ``input_ids``, ``targets`` ([R, L], the token that was there, -100 where none is asked for)
and ``attention_mask`` ([R, L], 1 where there is a token). What is drawn depends on the seed, the step and
what the row holds: not on the number of ranks or micro-batches, and anew each time that a row comes by.

Do not use it for models that read from left to right: with ``next_token`` the target is the token behind.

Errors: a tokenizer without a mask token, where ``mask`` names none either; rows that are empty.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Data, State
from trainwright.lm.losses import field

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, or a random one."""


class MaskWords(Data):
    """Hides whole words of the rows that it pulls, and makes them the targets."""

    rate: float = 0.15
    """Share of a row's tokens that are chosen."""
    mask: str | None = None
    """Token that stands for what is hidden; default: the tokenizer's mask token."""
    example: ClassVar[dict[str, Any]] = {"mask": "<|endoftext|>"}
    beside: ClassVar[tuple[dict[str, Any], ...]] = (
        {"use": "pack", "length": 32, "isolate": "rows"}, {"use": "masked_token"})

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate must be between 0 and 1, not {self.rate}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        self.words(ctx)
        return {}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch, words = pull(), self.words(ctx)
        there = attention(batch)
        ids = field(batch, "input_ids").clone()
        targets = torch.full_like(ids, UNTRAINED)
        for row in range(len(ids)):
            key = hashlib.sha256(batch["input_ids"][row].numpy().tobytes()).hexdigest()
            draw = ctx.rng(f"mask_words/{key}")
            chosen = choose(words, ids[row], there[row], self.rate, draw)
            targets[row, chosen] = ids[row, chosen]
            ids[row, chosen] = replaced(words, ids[row, chosen], draw)
        return batch | {"input_ids": ids, "targets": targets, "attention_mask": there.long()}

    def preview(self, batch: Batch, ctx: Context) -> str:
        ids, targets, tokenizer = batch["input_ids"][0], batch["targets"][0], ctx.tokenizer
        hidden = [tokenizer.decode([int(t)]) for t in targets[targets != UNTRAINED][:8]]
        row = tokenizer.decode(ids[attention(batch)[0]].tolist())
        return f"a row with its gaps: {row[:300]!r}; what is asked for: {', '.join(map(repr, hidden))}"

    def words(self, ctx: Context) -> Words:
        if ctx.tokenizer is None:
            raise UserError("mask_words needs the corpus' tokenizer: name a corpus as from.data.")
        mask = self.mask or ctx.tokenizer.mask_token
        if mask is None or mask not in ctx.tokenizer.get_vocab():
            what = f"has no token {mask!r}" if mask else "has no mask token"
            raise UserError(f"mask_words: the tokenizer {what}: set mask_token = true on the corpus that "
                            "trains it, or name a token of its own as mask.")
        return words_of(ctx.tokenizer, ctx.tokenizer.get_vocab()[mask])


def attention(batch: Batch) -> Tensor:
    """Where a batch has tokens, bool [R, L]."""
    if "attention_mask" in batch:
        return batch["attention_mask"].bool()  # type: ignore[no-any-return]
    whole = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    return batch["document"] >= 0 if "document" in batch else whole


class Words(NamedTuple):
    """What a tokenizer's tokens have to do with words, by id (bool [vocabulary])."""

    continues: Tensor
    """It goes on with the word before it, if that is one."""
    open: Tensor
    """Its end may be followed by the rest of its word."""
    special: Tensor
    plain: Tensor
    """Ids of all tokens that are not special."""
    mask: int


@lru_cache(maxsize=8)
def words_of(tokenizer: Any, mask: int) -> Words:
    """Read from the tokens' own spelling."""
    size = len(tokenizer)
    pieces = tokenizer.convert_ids_to_tokens(list(range(size)))
    prefix = json.loads(tokenizer.backend_tokenizer.to_str())["model"].get("continuing_subword_prefix")
    continues, is_open = torch.zeros(size, dtype=torch.bool), torch.zeros(size, dtype=torch.bool)
    for i, piece in enumerate(pieces):
        text = piece or " "
        continues[i] = text.startswith(prefix) if prefix else _in_word(text[0])
        is_open[i] = _in_word(text[-1]) or text in ("Ġ", "▁")      # a space that the next word begins with
    special = torch.zeros(size, dtype=torch.bool)
    special[[i for i in {*tokenizer.all_special_ids, mask} if i < size]] = True
    return Words(continues & ~special, is_open & ~special, special, (~special).nonzero()[:, 0], mask)


def _in_word(character: str) -> bool:
    """Whether a character of a token belongs to a word. Beyond ASCII, byte-level tokens spell bytes by
    stand-in letters, of which Ġ, Ċ, ĉ and č are white space; ▁ is SentencePiece's space."""
    return character.isalnum() if character.isascii() else character not in "ĠĊĉč▁"


def choose(words: Words, ids: Tensor, there: Tensor, rate: float, draw: torch.Generator) -> Tensor:
    """Places of the chosen tokens of one row, sorted.

    Args:
        ids: int64 [L].
        there: bool [L], where the row has a token.
    """
    number = numbered(words, ids, there)
    able = there & ~words.special[ids]
    if not able.any():
        raise UserError("mask_words: a row has no token that could be masked.")
    sizes = torch.bincount(number[able], minlength=int(number[-1]) + 1)
    left, taken = max(1, round(rate * int(there.sum()))), []
    found = sizes.nonzero()[:, 0]
    for word in found[torch.randperm(len(found), generator=draw)].tolist():
        if (size := int(sizes[word])) <= left:
            taken.append(word)
            left -= size
        if not left:
            break
    if not taken:                                  # every word is longer than k: one of them all the same
        taken = [int(found[int(torch.randint(len(found), (1,), generator=draw))])]
    return (able & torch.isin(number, torch.tensor(taken))).nonzero()[:, 0]


def numbered(words: Words, ids: Tensor, there: Tensor) -> Tensor:
    """The number of the word at each place of a row, from 0: int64 [L]."""
    open_before = torch.cat([torch.zeros(1, dtype=torch.bool), (words.open[ids] & there)[:-1]])
    return (~(words.continues[ids] & open_before)).long().cumsum(0) - 1


def replaced(words: Words, ids: Tensor, draw: torch.Generator) -> Tensor:
    """What stands in the row instead of the chosen tokens."""
    way = torch.rand(len(ids), generator=draw)
    other = words.plain[torch.randint(len(words.plain), (len(ids),), generator=draw)]
    masked = torch.where(way < MASKED, words.mask, ids)
    return torch.where((way >= MASKED) & (way < MASKED + RANDOM), other, masked)
