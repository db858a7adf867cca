"""How much of its training text a model has by heart, be it of use or not.

The memorisation of "Physics of Language Models: Part 3.1, Knowledge Storage and Extraction" (arXiv
2309.14316): a model may say every attribute of a person right behind the words of the biography, and answer
no question about them. Each text is given to the model as it is; the next token is right where it is the
likeliest one:

    memorized/tokens     = tokens of the texts that are right / tokens
    memorized/ATTRIBUTE  = values of which all tokens are right / values of the attribute
    memorized/mean       = the mean over attributes

Texts are documents of ``domain``; values are known from the questions of ``questions`` (``name``,
``attribute`` and ``answer`` in their metadata, as ``physics_of_lms_3_1`` makes them), and only tokens are
counted where there are none. Beside ``knowledge_extraction`` it tells the two apart.

Not on texts that the model has not read: there it measures how well they can be guessed.

Errors: no tokenizer; a domain that the corpus does not have.
"""
from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import Evaluator
from trainwright.core.settings import Count
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate import _people
from trainwright.evaluate._people import Read, read
from trainwright.families import evaluating, token_logits
from trainwright.lm.losses import most_positions, padded, positions


class Memorization(Evaluator):
    """Measures ``memorized`` of tokens, of each attribute, and the mean over attributes."""

    domain: str = "bio"
    """Domain of the texts."""
    questions: tuple[str, ...] = ("qa", "qa_test")
    """Domains whose questions say what is known of whom; those that the corpus lacks are left out."""
    most: Count = 500
    """Most texts, chosen by their ids."""
    batch_size: Count = 16
    """Texts of a forward pass."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    makes: ClassVar[tuple[str, ...]] = ("memorized/*",)
    example: ClassVar[dict[str, Any]] = {"domain": "prose", "most": 6, "batch_size": 4}

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if ctx.tokenizer is None:
            raise UserError("memorization: the stage has no tokenizer to read the texts with.")
        known: dict[str, dict[str, str]] = {}
        for domain in set(self.questions) & set(open_corpus(ctx.path("data")).domains):
            known |= _people.facts(ctx, domain, self.name)
        texts = list(_people.rows(ctx, self.domain, self.name))[:self.most]
        longest = most_positions(model)
        every = [read(ctx.tokenizer, row["text"] or "", known.get(row["metadata"].get("name", ""), {}))
                 for row in texts]
        told: dict[str, list[float]] = {}
        for at in range(0, len(every), self.batch_size):
            part = [one for one in every[at:at + self.batch_size] if len(one.ids) > 1]
            for one, right in zip(part, _right(model, part, longest, ctx), strict=True):
                told.setdefault("tokens", []).extend(right.float().tolist())
                for attribute, (first, last) in one.values.items():
                    if last <= len(right):
                        hit = float(right[first - 1:last].all())
                        told.setdefault(attribute, []).append(hit)
        means = {f"memorized/{name}": sum(hits) / len(hits) for name, hits in sorted(told.items())}
        values = [value for name, value in means.items() if name != "memorized/tokens"]
        return means | ({"memorized/mean": sum(values) / len(values)} if values else {})


def _right(model: nn.Module, part: list[Read], longest: int | None, ctx: Context) -> list[Tensor]:
    """Of each text whether each token but the first is the likeliest behind those before it, bool."""
    if not part:
        return []
    ids = [one.ids[:longest] for one in part]
    batch = padded([(one, []) for one in ids], ctx)
    with torch.no_grad(), evaluating(model):
        said = token_logits(model, batch["input_ids"], positions(model, batch)).argmax(-1).cpu()
    return [said[i, :len(one) - 1] == torch.tensor(one[1:]) for i, one in enumerate(ids)]
