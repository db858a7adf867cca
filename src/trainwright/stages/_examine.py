"""What of a training stage is checked before it runs, against a model without weights."""

from __future__ import annotations

from typing import Any

from torch import nn

from trainwright import families
from trainwright.core.claims import check_claims, check_steps
from trainwright.core.errors import UserError, located
from trainwright.core.method import Data, Evaluator, Objective, Surgery
from trainwright.core.metrics import watched
from trainwright.life.jobs import Job
from trainwright.stages._training import stage_of
from trainwright.storage.store import Store


def examine(job: Job, store: Store) -> None:
    """Everything that can be checked of a training stage before it runs, where its
    model's config is known."""
    _check_watched(job)
    config = stage_of(job).start_config(job, store)
    if config is not None:
        check_model(job, config, store)


def _check_watched(job: Job) -> None:
    """What the stage or a method of it watches is measured, and on the way."""
    stage = stage_of(job)
    names = {f"{m.name}: {key} = {value!r}": value for m in job.methods for key, value in watched(m).items()}
    names |= {f"keep = {stage.keep!r}": stage.best} if stage.best else {}
    for said, metric in names.items():
        if not stage.eval_every:
            raise UserError(f"{job.where}: {said}: nothing is measured on the way; say eval_every = STEPS.")
        evaluators: list[Evaluator] = job.of(Evaluator)
        if not any(m.may_make(metric) for m in evaluators):
            made = sorted({glob for m in evaluators for glob in m.makes})
            raise UserError(f"{job.where}: {said}: no evaluator of the stage makes this number; they make "
                            f"{', '.join(made) or 'none: name one, such as held_out'}.")


def _vocabulary(job: Job, store: Store) -> int | None:
    """Tokens of the corpus' tokenizer. One that is trained may find fewer than it was asked for: of a corpus
    that is still to be made nothing is said beside a model that is there."""
    source = job.source("data") or job.source("tokenizer")
    made = store.find(source.job.stage.name, source.job.key) if source is not None and source.job else None
    if made is not None and isinstance(size := made.figures.get("vocab_size"), int):
        return size
    begun = stage_of(job).origin(job)
    there = begun is not None and begun.job is not None and begun.ready(store)
    return None if there else job.vocabulary("data", "tokenizer")


def check_model(job: Job, config: Any, store: Store) -> nn.Module:
    """Claims against the untouched model, and the vocabulary; returns the model without weights."""
    size, vocabulary = families.config_vocabulary(config), _vocabulary(job, store)
    if vocabulary and size is not None and vocabulary > size:
        raise UserError(f"{job.where}: the corpus has a vocabulary of {vocabulary} tokens, "
                        f"which does not fit the model's {size} (vocab_size).")
    longest = families.positions_of(config)
    for m in job.of(Data):
        if longest and (m.row_tokens() or 0) > longest:
            raise UserError(f"{job.where}: {m.name} makes rows of {m.row_tokens()} tokens; "
                            f"the model takes at most {longest} (max_position_embeddings).")
    model = families.skeleton(config, job.where)
    with located(job.where):
        families.check_objectives([*job.of(Objective), *job.of(Evaluator)], model)
        check_claims(job.methods, model)
        # which decides what is trainable, and may need weights to do so
        if not job.of(Surgery):
            check_steps(job.methods, [n for n, p in model.named_parameters() if p.requires_grad])
    return model
