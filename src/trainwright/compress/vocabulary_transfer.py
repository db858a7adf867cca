"""Vocabulary transfer: bring a model onto another tokenizer, so that it can be merged, distilled or shrunk.

"Fast Vocabulary Transfer for Language Model Compression" (FVT, arXiv 2402.09977). With E [V, d] the
embeddings of the old tokenizer and E' [V', d] those of ``from.tokenizer``, a corpus or a model,

    E'_t = E_t                               for a token t that both have
           mean of E_p over the pieces p     that the old tokenizer makes of t, for any other one
           mean of all E                     where it makes none

and the same for the output layer where it is not tied to them. Everything else stays. A few steps of training
on text afterwards make the new rows fit.

Two models of different vocabularies are merged by this method:

    base     bring each of the others onto the base's tokenizer (``vocabulary = "base"``), and merge
    union    the same with ``"union"``, which adds to ``from.tokenizer`` those added tokens of the model that
             it lacks (control tokens, names); then bring the base onto the result

A learned vocabulary is not united: beside the merges of one tokenizer, tokens of another are never written.

Not for tokenizers of different scripts or kinds of bytes, where most pieces are single bytes: those rows say
little until they are trained.

Errors: no tokenizer of the model or of ``from.tokenizer``; a model without embeddings of tokens.
"""
from __future__ import annotations

import copy
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Surgery

ENDS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""What a config says of a tokenizer."""


class VocabularyTransfer(Surgery):
    """Makes rows of a new vocabulary out of those of the old one."""

    vocabulary: Literal["base", "union"] = "base"
    """The tokens of from.tokenizer, or these and the model's own added ones."""
    neutral: ClassVar[bool] = False
    example: ClassVar[dict[str, Any]] = {}

    def claims(self, model: nn.Module) -> set[str]:
        found = [m for m in _tables(model) if m is not None]
        names = {id(p): n for n, p in model.named_parameters()}
        return {names[id(m.weight)] for m in found}

    @torch.no_grad()
    def operate(self, model: Any, ctx: Context) -> None:
        folders, new = ctx.inputs.get("model", []), ctx.tokenizer
        old = families.load_tokenizer(folders[0], self.name) if folders else new
        if old is None or new is None:
            whose = "the model" if old is None else "from.tokenizer"
            raise UserError(f"vocabulary_transfer: {whose} has no tokenizer, so that its tokens have no "
                            "names.")
        if self.vocabulary == "union":
            new = ctx.tokenizer = united(new, old)
        if new.get_vocab() == old.get_vocab():
            return
        places = pieces(old, new)
        rows = [(table.weight.clone(), getattr(table, "bias", None)) for table in _tables(model)
                if table is not None]
        model.resize_token_embeddings(len(places), mean_resizing=False)
        for table, (weight, bias) in zip([t for t in _tables(model) if t is not None], rows, strict=True):
            table.weight.copy_(transferred(weight, places))
            if bias is not None:
                table.bias.copy_(transferred(bias[:, None], places)[:, 0])
        for name in ENDS:
            for config in (model.config.get_text_config(), model.generation_config):
                setattr(config, name, getattr(new, name))
        known = sum(len(p) == 1 for p in places)
        ctx.note("vocabulary_transfer/kept", known / len(places))
        ctx.show("vocabulary_transfer", f"of {len(places):,} tokens {known:,} have a row of the old "
                                        "vocabulary, the others are means of several.")


def _tables(model: Any) -> list[Any]:
    """The embedding, and the output layer where it has numbers of its own."""
    if not families.is_pretrained(model) or model.get_input_embeddings() is None:
        raise UserError(f"vocabulary_transfer: a {type(model).__name__} has no embeddings of tokens.")
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    return [table, None if head is None or head.weight is table.weight else head]


def united(new: Any, old: Any) -> Any:
    """The tokenizer ``new`` with the added tokens of ``old`` that it lacks."""
    made, there = copy.deepcopy(new), new.get_vocab()
    more = [token for _, token in sorted(old.added_tokens_decoder.items()) if token.content not in there]
    made.add_tokens([t for t in more if not t.special])
    made.add_tokens([t for t in more if t.special], special_tokens=True)
    return made


def pieces(old: Any, new: Any) -> list[list[int]]:
    """Of each token of ``new``, by its id, the tokens of ``old`` that its row is the mean of; none where
    there are none."""
    there, found = old.get_vocab(), [[] for _ in range(max(new.get_vocab().values()) + 1)]
    for token, place in new.get_vocab().items():
        if token in there:
            found[place] = [there[token]]
            continue
        parts = [one.id for one in old.backend_tokenizer.model.tokenize(token)]
        if not parts or old.unk_token_id in parts:
            parts = old.encode(new.convert_tokens_to_string([token]), add_special_tokens=False)
        found[place] = [p for p in parts if p != old.unk_token_id]
    return found


def transferred(rows: Tensor, places: list[list[int]]) -> Tensor:
    """The new rows [V', d] of old ones [V, d]."""
    every = rows.float().mean(0)
    made = [rows[p].float().mean(0) if p else every for p in places]
    return torch.stack(made).to(rows.dtype)
