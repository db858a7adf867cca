"""Teacher hacking: whether a student comes nearer to its teacher while it leaves the truth behind.

"On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671). The truth is an oracle, a language
model that wrote all texts; the teacher has learned from some of them, the student from the teacher. Over
prompts x of held-out documents, with answers y sampled from the first of the two models,

    teacher_hacking/proxy      mean_x KL(teacher(. | x) || student(. | x))    what distillation makes smaller
    teacher_hacking/golden     mean_x KL(oracle(. | x) || student(. | x))     what it is for
    teacher_hacking/teacher    mean_x KL(oracle(. | x) || teacher(. | x))     how much there is to hack

in nats an answer: the sum over its tokens of the divergence of the next one, over the whole vocabulary, which
is the divergence of whole answers; ``_se`` behind a name is its standard error over prompts. Hacking is a
proxy that falls over a run's snapshots, ``models = ["student@100", "student@400", …]``, while golden rises.
The same prompts and the same draws serve all models. ``on_policy`` makes the answers of the paper's arms: the
teacher's, written once (``fixed``) or anew each time, or the student's.

With a teacher that equals the oracle nothing can be hacked, and prompts of the training documents would
confuse it with what was learned by heart. Prompts are the first ``prompt`` tokens of documents. Left out: the
test for a departure from a power law.

Errors: no teacher or no oracle, one of another vocabulary; a split without documents of that length.
"""
from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Batch, Evaluator
from trainwright.core.settings import Count
from trainwright.core.stage import Role
from trainwright.corpus.tokens import open_corpus
from trainwright.data.order.examples import inputs_of
from trainwright.lm.distillation import divergence
from trainwright.lm.generation import Prompt, sampled
from trainwright.lm.losses import padded

KINDS = ("proxy", "golden", "teacher")


class TeacherHacking(Evaluator):
    """Measures how far a student is from its teacher, and from the oracle that taught the teacher."""

    prompts: Count = 64
    """Documents whose beginnings are prompts."""
    prompt: Count = 8
    """Tokens of a prompt."""
    new_tokens: Count = 32
    """Tokens of an answer at most."""
    split: Literal["train", "tune", "test"] = "test"
    """Which documents of the corpus."""
    domains: tuple[str, ...] = ()
    """Domains; all of the corpus' where none is named."""
    batch_size: Count = 32
    """Answers that are written and compared at once."""
    families: ClassVar[tuple[str, ...]] = ("causal_lm",)
    roles: ClassVar[dict[str, Role]] = {"teacher": Role(needed=True), "oracle": Role(needed=True)}
    makes: ClassVar[tuple[str, ...]] = tuple(f"teacher_hacking/{k}*" for k in KINDS)
    example: ClassVar[dict[str, Any]] = {"prompts": 4, "prompt": 2, "new_tokens": 3}

    @torch.no_grad()
    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        others = dict(self._others(model, ctx))
        given = self._prompts(ctx)
        rows = {role: self._rows(other, given, ctx) for role, other in others.items()}
        pairs = {"proxy": ("teacher", model), "golden": ("oracle", model),
                 "teacher": ("oracle", others.get("teacher"))}
        found: dict[str, float] = {}
        for kind, (role, second) in pairs.items():
            if role not in others or second is None:
                continue
            sums = torch.cat([divergence(second, others[role], batch).double().sum(1).cpu()
                              for batch in rows[role]])
            found[f"{self.name}/{kind}"] = float(sums.mean())
            found[f"{self.name}/{kind}_se"] = float(sums.std(correction=len(sums) > 1) / math.sqrt(len(sums)))
        return found

    def _others(self, model: nn.Module, ctx: Context) -> Iterator[tuple[str, nn.Module]]:
        """The teacher and the oracle: those that a stage of training holds, or else loaded."""
        for role in self.roles:
            folders = ctx.inputs.get(role, [])
            other = ctx.frozen.get(role)
            if other is None and folders:
                other = families.load(folders[0], self.name).to(ctx.device).eval()
            if other is not None:
                self._check(role, other, model, folders, ctx)
                yield role, other

    def _check(self, role: str, other: Any, model: Any, folders: list[Path], ctx: Context) -> None:
        theirs = families.load_tokenizer(folders[0], self.name) if folders else None
        words = [m.get_input_embeddings().num_embeddings for m in (other, model)]
        known = theirs is not None and ctx.tokenizer is not None
        if words[0] != words[1] or (known and theirs.get_vocab() != ctx.tokenizer.get_vocab()):
            raise UserError(f"teacher_hacking: the {role} has another vocabulary than the model that is "
                            "measured, so that their words cannot be compared.")

    def _prompts(self, ctx: Context) -> list[list[int]]:
        """The first tokens of the first documents, by id, that are long enough."""
        folder = ctx.path("data")
        found = open_corpus(folder).examples(self.split, self.domains)
        inputs = inputs_of(folder, ("text",), self.prompt, None, ctx.tokenizer)
        order = sorted(range(len(found)), key=lambda i: found.ids[i])
        given: list[list[int]] = []
        for at in range(0, len(order), self.prompts):
            made = inputs.batch(found.rows(order[at:at + self.prompts], inputs.columns))
            whole = zip(made["input_ids"], made["attention_mask"], strict=True)
            given += [ids.tolist() for ids, there in whole if there.all()]
            if len(given) >= self.prompts:
                break
        if not given:
            raise UserError(f"teacher_hacking: no document of the split {self.split!r} has {self.prompt} "
                            "tokens.")
        return given[:self.prompts]

    def _rows(self, writer: nn.Module, given: list[list[int]], ctx: Context) -> list[Batch]:
        """Answers of a model behind the prompts, in batches; what is compared are their tokens."""
        asked = [Prompt(ids, self.new_tokens, ctx.rng(f"{self.name}/{i}", at=0).initial_seed(), 1.0)
                 for i, ids in enumerate(given)]
        said = sampled(writer, ctx.tokenizer, asked, ctx, batch_size=self.batch_size)
        rows = [_row(p.ids, one.ids) for p, one in zip(asked, said, strict=True)]
        return [padded(rows[at:at + self.batch_size], ctx) for at in range(0, len(rows), self.batch_size)]


def _row(prompt: list[int], answer: list[int]) -> tuple[Tensor, Tensor]:
    """Tokens and targets, of which the answer is compared."""
    ids = torch.tensor([*prompt, *answer])
    targets = torch.full_like(ids, UNTRAINED)
    targets[len(prompt) - 1:-1] = ids[len(prompt):]
    return ids, targets
