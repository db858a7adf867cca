"""Runs several experiments on pretraining data within one training run, each in its own share of the rows.

"Train Once, Answer All: Many Pretraining Experiments for the Cost of One" (arXiv 2509.23383). An experiment
is a domain of ``from.experiments`` (canaries, leaked test items, invented facts, ...). At each step rows of
the batch are drawn at random and *replaced* by rows of the experiments; nothing is inserted, so that tokens,
steps and the schedule are those of a run without experiments. With R rows a step and shares s_e,

    rows of e at step t = floor(R s_e + u_(e,t)),    u uniform in [0, 1), so that its mean is R s_e

and the places of all experiments are disjoint. Places and rows are drawn for every experiment, also for one
that is left out of ``active``: there the row stays as it was. So a run with experiment i alone, one with i
and j, and one with none (``active = []``, the control) have the same rows wherever they have the same
experiment, and

    interaction (j -> i) = outcome of i in the run with i and j - outcome of i in the run with i alone

is the difference of two arms of a comparison (``trainwright compare``), paired over seeds, whose interval
says how large an interaction could have been missed. An unchanged loss curve alone does not show that
experiments do not interact.

Each experiment is measured by an evaluator of its own (``membership``, ``ts_guessing``, ``held_out`` on its
domain), best with texts that were kept out, the ``test`` documents of its domain. Notes ``rows/EXPERIMENT``
count its rows. Left out: experiments that change their data while the model learns.

Not for experiments that share text: these interact by construction.

Errors: a domain that ``from.experiments`` does not have; shares of more than 0.5 in all; another vocabulary;
batches that are no rows of tokens.
"""
from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Batch, Data, State
from trainwright.core.stage import CORPUS, Role
from trainwright.corpus.tokens import open_corpus
from trainwright.evaluate.audit._replaced import REPLACED, check_rows
from trainwright.lm.losses import field
from trainwright.lm.rows import Cut, Rows, rows_of


class TrainOnceAnswerAll(Data):
    """Replaces a share of the rows that it pulls by rows of experiments."""

    shares: dict[str, float] = dataclasses.field(default_factory=dict)
    """Share of all rows that each experiment has, by its domain, such as ``{ canaries = 0.002 }``."""
    active: tuple[str, ...] | None = None
    """Experiments that take place; default: all. The others keep their places, and the rows stay there."""
    split: str = "train"
    """Which documents of the experiments are trained on."""
    roles: ClassVar[dict[str, Role]] = {"experiments": CORPUS._replace(instead="data")}
    example: ClassVar[dict[str, Any]] = {"shares": {"code": 0.2, "prose": 0.1}}

    def __post_init__(self) -> None:
        if not self.shares or min(self.shares.values()) <= 0 or sum(self.shares.values()) > 0.5:
            raise ValueError("shares must name experiments, each with a share above 0, and of 0.5 together "
                             f"at most, not {dict(self.shares)}")
        for name in self.active or ():
            if name not in self.shares:
                raise ValueError(f"active names {name!r}, which has no share{suggest(name, self.shares)}")

    def init(self, model: nn.Module, ctx: Context) -> State:
        known = open_corpus(self.folder(ctx))
        for name in self.shares:
            if name not in known.domains:
                raise UserError(f"train_once_answer_all: from.experiments has no domain {name!r}"
                                f"{suggest(name, known.domains)}.")
        if known.vocab_size != open_corpus(ctx.path("data")).vocab_size:
            raise UserError("train_once_answer_all: from.experiments has another vocabulary than from.data: "
                            "build it with from = { tokenizer = \"DATA\" }.")
        return {"shared": {"taken": dict.fromkeys(self.shares, 0)}}

    def next(self, pull: Callable[[], Batch], state: State, ctx: Context) -> Batch:
        batch, taken = pull(), state["shared"]["taken"]
        mine, length = len(field(batch, "input_ids")), field(batch, "input_ids").shape[1]
        check_rows(batch, self.name)
        every = ctx.batch_rows or mine
        here = range(every)[ctx.rows(every)]
        out = {name: batch[name].clone() for name in REPLACED if name in batch}
        domain, domains = batch["domain"].clone(), tuple(batch["domains"])
        for name, places in self.places(every, ctx).items():
            first, taken[name] = taken[name], taken[name] + len(places)
            if self.active is not None and name not in self.active:
                continue
            if name not in domains:
                domains = (*domains, name)
            ctx.note(f"rows/{name}", float(len(places)))
            for i, place in enumerate(places.tolist()):
                if place in here:
                    alone = not batch.get("packed", True)
                    row = self.rows(name, length, alone, ctx).batch([(name, first + i)])
                    for part, tensor in out.items():
                        tensor[place - here.start] = row[part][0]
                    domain[place - here.start] = domains.index(name)
        return batch | out | {"domain": domain, "domains": domains}

    def places(self, rows: int, ctx: Context) -> dict[str, Tensor]:
        """Which of a step's rows each experiment has, whether it is active or not."""
        draw = ctx.rng("train_once_answer_all")
        order, out = torch.randperm(rows, generator=draw), dict[str, Tensor]()
        for name, share in self.shares.items():
            many = math.floor(rows * share + float(torch.rand(1, generator=draw)))
            out[name], order = order[:many], order[many:]
        return out

    def rows(self, name: str, length: int, alone: bool, ctx: Context) -> Rows:
        """The rows of an experiment: whole documents, as far as a row holds one; ``alone``: one a row."""
        return rows_of(self.folder(ctx), self.split, (name,), Cut(length, True, alone), ctx.seed)

    def folder(self, ctx: Context) -> Any:
        """The corpus of the experiments."""
        return ctx.path("experiments" if ctx.inputs.get("experiments") else "data")
