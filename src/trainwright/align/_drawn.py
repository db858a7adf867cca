"""Answers that a model of the recipe draws to conversations, and pairs of them as documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from trainwright.core.context import Context
from trainwright.core.errors import UserError

if TYPE_CHECKING:
    from daft import DataFrame

Turns = list[dict[str, Any]]


class Step(NamedTuple):
    """A part of an answer."""

    text: str
    end: str
    """The token that ended the answer, as text; empty where it goes on."""
    prob: float
    """The geometric mean of the probabilities of its tokens."""
    ended: bool


@dataclass(frozen=True)
class Writer:
    """A model with its tokenizer, which has a chat template."""

    model: Any
    tokenizer: Any
    ctx: Context
    who: str

    @classmethod
    def of(cls, folder: Path, ctx: Context, who: str) -> Writer:
        """The one in a folder.

        Raises:
            UserError: it has no tokenizer, or one without a chat template.
        """
        from trainwright import families

        tokenizer = families.load_tokenizer(folder, who)
        if tokenizer is None or tokenizer.chat_template is None:
            raise UserError(
                f"{who}: the model in {folder} has no tokenizer with a chat template, so that it "
                "cannot answer."
            )
        model: Any = families.load(folder, who).to(ctx.device).eval()
        return cls(model, tokenizer, ctx, who)

    def prompt(self, turns: Turns) -> str:
        """A conversation up to an answer, as the model reads it."""
        return str(self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))

    def ids(self, turns: Turns, begun: str = "") -> list[int]:
        """The tokens of that, and of how the answer begins."""
        return list(self.tokenizer(self.prompt(turns) + begun, add_special_tokens=False)["input_ids"])

    def fits(self, turns: Turns, tokens: int) -> bool:
        """Whether so many tokens have room behind a conversation in the model's positions."""
        from trainwright.lm.losses import most_positions

        most = most_positions(self.model)
        return most is None or len(self.ids(turns)) + tokens <= most

    def answers(
        self,
        asked: Mapping[str, Turns],
        samples: int,
        new_tokens: int,
        temperature: float,
        batch_size: int,
        key: str = "",
    ) -> dict[str, list[str]]:
        """``samples`` answers to each of some conversations.

        What is drawn depends on the seed, ``key``, the conversation's name and the answer's number alone.
        """
        from trainwright.lm.generation import Prompt, room, sampled, written

        prompts = []
        for name, turns in asked.items():
            ids = self.ids(turns)
            left = room(self.model, len(ids), new_tokens, self.who)
            keys = [f"{self.who}/{key}/{name}/{i}" for i in range(samples)]
            seeds = [self.ctx.rng(one, at=0).initial_seed() for one in keys]
            prompts += [Prompt(ids, left, seed, temperature) for seed in seeds]
        given = (self.model, self.tokenizer, prompts, self.ctx)
        if temperature:
            drawn = [one.ids for one in sampled(*given, batch_size=batch_size)]
        else:
            drawn = written(*given, batch_size=batch_size, top_k=0)
        said = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in drawn]
        return {name: said[i * samples : (i + 1) * samples] for i, name in enumerate(asked)}

    def steps(
        self,
        asked: Mapping[str, Turns],
        samples: int,
        new_tokens: int,
        temperature: float,
        batch_size: int,
        begun: Mapping[str, str],
        key: str,
    ) -> dict[str, list[Step]]:
        """``samples`` continuations of what each answer has ``begun`` with, by names; drawn by ``key``."""
        from trainwright.lm.generation import Prompt, room, sampled

        prompts = []
        for name, turns in asked.items():
            ids = self.ids(turns, begun[name])
            left = room(self.model, len(ids), new_tokens, self.who)
            keys = [f"{self.who}/{name}/{key}/{i}" for i in range(samples)]
            seeds = [self.ctx.rng(one, at=0).initial_seed() for one in keys]
            prompts += [Prompt(ids, left, seed, temperature) for seed in seeds]
        said = sampled(self.model, self.tokenizer, prompts, self.ctx, batch_size=batch_size)
        ends = self._ends()
        made = []
        for one in said:
            ended = one.ids[-1] in ends
            text = self.tokenizer.decode(one.ids, skip_special_tokens=True)
            end = self.tokenizer.decode(one.ids[-1:]) if ended else ""
            made.append(Step(text, end, math.exp(sum(one.logp) / len(one.logp)), ended))
        return {name: made[i * samples : (i + 1) * samples] for i, name in enumerate(asked)}

    def perplexities(self, asked: Mapping[str, Turns], batch_size: int) -> dict[str, float]:
        """Of the last message of each conversation, given what stands before it."""
        import torch

        from trainwright.core.method import UNTRAINED
        from trainwright.lm.losses import padded, token_losses

        rows, out = [], []
        for turns in asked.values():
            start = self.ids(turns[:-1])
            whole = self.ids(turns[:-1], str(turns[-1]["content"]))
            targets = [t if i >= len(start) else UNTRAINED for i, t in enumerate(whole)][1:]
            rows.append((whole[:-1], targets))
        for at in range(0, len(rows), batch_size):
            batch = padded(rows[at : at + batch_size], self.ctx)
            with torch.no_grad():
                losses = token_losses(self.model, batch, self.ctx).double().sum(1)
            tokens = (batch["targets"] != UNTRAINED).sum(1).clamp(min=1)
            out += (losses / tokens).exp().tolist()
        return dict(zip(asked, out, strict=True))

    def _ends(self) -> set[int]:
        end = self.model.generation_config.eos_token_id
        end = self.tokenizer.eos_token_id if end is None else end
        return {end} if isinstance(end, int) else set(end or ())


def paired(rows: DataFrame, pairs: Mapping[str, tuple[Turns, str, str]], domain: str, who: str) -> DataFrame:
    """The table and documents of pairs: by documents' ids a prompt, the better and the worse answer."""
    from trainwright.corpus.sources import document, table, union

    made = []
    for name, (prompt, *answers) in pairs.items():
        chosen, rejected = ([{"role": "assistant", "content": said}] for said in answers)
        columns = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        one = document(id=paired_id(name, domain), domain=domain, source=who, origin=name, columns=columns)
        made.append(one)
    return union(rows, table(who, [partial(iter, made)]))


def paired_id(name: str, domain: str) -> str:
    """The id of the pair that is made from a document."""
    return f"{name}#{domain}"
