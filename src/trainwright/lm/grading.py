"""A language model as a grader: what it would answer to a question, as a number.

A prompt has a few possible answers a_1 … a_K, each worth a number v_k (grades from 1 to 6; yes for 1 and no
for 0). With z_k the logit of the token in which answer k first differs from the others, right after the
prompt (and after what the answers begin with alike),

    grade = sum_k v_k softmax(z_1 … z_K)_k

The expectation, not the likeliest answer: that one has as few values as there are answers, and ties
everywhere. A causal model reads the prompt through its chat template, where it has one; a model of encoder
and decoder reads it in the encoder, and its decoder begins the answer.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.corpus.chat import own_template
from trainwright.families import evaluating, load_tokenizer, token_logits
from trainwright.lm.encoder_decoder import has_encoder
from trainwright.lm.generation import encoded
from trainwright.lm.losses import body_states, output_head, padded, positions, way_of
from trainwright.lm.scoring import Reader
from trainwright.lm.writing.prompts import filled

SPARE = 0.95
"""Where a prompt is too long, the share of what seems to fit that its longest part is cut to."""


@dataclass(frozen=True)
class Grader:
    """A model that is asked, and the answers among which it chooses."""

    reader: Reader
    tokenizer: Any
    begin: tuple[int, ...]
    """Tokens with which all answers begin."""
    tokens: tuple[int, ...]
    """Of each answer the token in which it differs from the others."""
    values: NDArray[np.float64]
    """What each answer is worth."""

    @classmethod
    def of(cls, folder: Path, answers: Mapping[str, float], ctx: Context, method: str, length: int,
           batch_tokens: int) -> Grader:
        """The model in ``folder``.

        Raises:
            UserError: it has no tokenizer, or one that does not tell the answers apart by a token.
        """
        reader = Reader.of(folder, ctx, method, length, batch_tokens)
        tokenizer = load_tokenizer(folder, method)
        plain = own_template(tokenizer) is None and not has_encoder(reader.model)
        begin, tokens = answer_tokens(tokenizer, list(answers), plain, method)
        return cls(reader, tokenizer, begin, tokens, np.array(list(answers.values()), dtype=np.float64))

    def ids(self, template: str, parts: Mapping[str, str]) -> list[int]:
        """The tokens of a prompt; the longest part loses its end where the whole would be longer than
        the model reads at once."""
        parts, model = dict(parts), self.reader.model
        chat = own_template(self.tokenizer) is not None and not has_encoder(model)
        room = self.reader.length - (0 if has_encoder(model) else len(self.begin))
        while True:
            found = encoded(model, self.tokenizer, filled(template, **parts), chat, "")
            longest = max(parts, key=lambda name: len(parts[name]), default="")
            if len(found) <= room or not parts.get(longest):
                return found[-room:]
            parts[longest] = parts[longest][:int(SPARE * len(parts[longest]) * room / len(found))]

    def grades(self, prompts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        """The grade of each prompt, given as tokens."""
        out = np.zeros(len(prompts))
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            many = 1
            while many < len(order) and (many + 1) * len(prompts[order[many]]) <= self.reader.batch_tokens:
                many += 1
            part, order = order[:many], order[many:]
            with torch.no_grad(), evaluating(self.reader.model):
                logits = self._logits([prompts[i] for i in part])
            out[part] = logits.double().softmax(-1).cpu().numpy() @ self.values
        return out

    def _logits(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """[prompts, answers]."""
        model: Any = self.reader.model
        wanted = torch.tensor(self.tokens, device=self.reader.ctx.device)
        if has_encoder(model):
            return self._decoded(prompts)[:, wanted]
        rows = [[*ids, *self.begin] for ids in prompts]
        batch = padded([(ids, []) for ids in rows], self.reader.ctx)
        at = torch.arange(len(rows)), torch.tensor([len(ids) - 1 for ids in rows])
        if not way_of(model).plain_head:
            return token_logits(model, batch["input_ids"], positions(model, batch))[at][:, wanted]
        states = body_states(model, batch["input_ids"], positions(model, batch))[at]
        head: Any = output_head(model)
        return F.linear(states, head.weight[wanted], None if head.bias is None else head.bias[wanted])

    def _decoded(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        model: Any = self.reader.model
        batch = padded([(ids, []) for ids in prompts], self.reader.ctx)
        lengths = torch.tensor([len(ids) for ids in prompts], device=self.reader.ctx.device)
        there = (torch.arange(batch["input_ids"].shape[1], device=lengths.device) < lengths[:, None]).long()
        start = [model.config.decoder_start_token_id, *self.begin]
        begun = torch.tensor([start] * len(prompts), device=lengths.device)
        return model(input_ids=batch["input_ids"], attention_mask=there,  # type: ignore[no-any-return]
                     decoder_input_ids=begun, use_cache=False).logits[:, -1]


def answer_tokens(tokenizer: Any, answers: Sequence[str], after_space: bool,
                  method: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens with which all answers begin, and of each the first in which it differs from the others.

    Raises:
        UserError: two answers do not differ there.
    """
    ids = [tokenizer(f" {a}" if after_space else a, add_special_tokens=False)["input_ids"] for a in answers]
    alike = 0
    while all(len(one) > alike for one in ids) and len({one[alike] for one in ids}) == 1:
        alike += 1
    told = [one[alike] if len(one) > alike else -1 for one in ids]
    if len(set(told)) < len(answers) or -1 in told:
        raise UserError(f"{method}: the tokenizer of the model begins several of the answers "
                        f"{', '.join(map(repr, answers))} with the same token, so that they cannot be told "
                        "apart: choose others.")
    return tuple(ids[0][:alike]), tuple(told)
