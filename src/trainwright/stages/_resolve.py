"""What scaling laws fill in where the recipe of a training stage leaves it out. What it says
is never overwritten."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright import families
from trainwright.core import registry, sharding
from trainwright.core.errors import UserError
from trainwright.core.method import Optimizer, ScalingLaw
from trainwright.core.settings import make
from trainwright.stages.train import TrainStage

if TYPE_CHECKING:
    from trainwright.life.jobs import Job
    from trainwright.storage.store import Store

BATCH = "batch_tokens"
"""The setting of a stage that a law may suggest; all others belong to methods."""


def fill(job: Job, store: Store) -> None:
    """Let the laws of a training stage fill in what its recipe leaves out; ``job.told`` then says what. Where
    the recipe names no law, the default one stands in for a model from scratch.

    Raises:
        UserError: a law that is named and cannot speak of this stage, or two that suggest the same setting.
    """
    named: list[ScalingLaw] = job.of(ScalingLaw)
    for law in named:
        if why := obstacle(law, job):
            raise UserError(f"{job.where}: {law.name} {why}.")
    laws = named or [law for law in _stand_in(job) if not obstacle(law, job)]
    if not laws:
        return
    known, owner = _known(job, store), dict[str, str]()
    for law in laws:
        suggested = law.suggest(known)
        for name in suggested:
            if name in owner:
                raise UserError(
                    f"{job.where}: {owner[name]} and {law.name} both suggest {name}; keep one of them."
                )
            owner[name] = law.name
        done = _Filled(known)
        if named or _knows_the_optimizers(job, suggested):
            for name, value in suggested.items():
                _set(job, name, value, done)
        if named or done.filled:
            job.methods += [] if named else [law]
            job.told.append(done.line(law))


def obstacle(law: ScalingLaw, job: Job) -> str:
    """Why a law cannot speak of this stage, as the end of a sentence; empty where it can."""
    stage = job.stage
    assert isinstance(stage, TrainStage)
    if law.scratch and stage.model is None:
        return "is a law of training from scratch, and this stage goes on with a model: leave it out"
    if TrainStage.row_tokens(job) is None:
        return "counts in tokens, and the data of this stage does not: leave it out"
    if stage.epochs is not None:
        return "must know the number of tokens before anything runs: say tokens (or steps) instead of epochs"
    return ""


def _stand_in(job: Job) -> list[ScalingLaw]:
    """The default law, for a model from scratch whose recipe leaves out the size of a
    step or a learning rate."""
    use, stage = registry.default_of("ScalingLaw"), job.stage
    assert isinstance(stage, TrainStage)
    rates = [i for i, m in enumerate(job.methods) if isinstance(m, Optimizer)]
    said = _batch_is_said(stage) and all(i < len(stage.methods) and "lr" in stage.methods[i] for i in rates)
    if use is None or stage.model is None or said:
        return []
    law = registry.create({"use": use}, Path(), job.where)
    assert isinstance(law, ScalingLaw)
    return [law]


def _known(job: Job, store: Store) -> dict[str, float]:
    """Parameters without embeddings, tokens, and the numbers that the recipe says, by their names in it."""
    stage, row = job.stage, TrainStage.row_tokens(job)
    assert isinstance(stage, TrainStage) and row is not None
    config = stage.start_config(job, store)
    if config is None:
        raise UserError(f"{job.where}: a law must know the model, which is not on this machine yet.")
    known: dict[str, float] = {"parameters": families.body_parameters(families.skeleton(config, job.where))}
    known["tokens"] = stage.tokens if stage.steps is None else stage.steps * stage.batch_rows(job) * row  # type: ignore[assignment]
    if _batch_is_said(stage):
        known[BATCH] = stage.batch_tokens or (stage.batch_size or 0) * row
    for table in stage.methods:
        known |= {
            f"{table['use']}.{k}": v
            for k, v in table.items()
            if isinstance(v, (int, float)) and not isinstance(v, bool)
        }
    return known


def _batch_is_said(stage: TrainStage) -> bool:
    return stage.batch_tokens is not None or stage.batch_size is not None


def _knows_the_optimizers(job: Job, suggested: dict[str, Any]) -> bool:
    """Whether the suggestion is about every optimizer of the stage: a law of one says nothing of another."""
    return all(
        f"{use}.lr" in suggested
        for use, m in zip(job.uses, job.methods, strict=True)
        if isinstance(m, Optimizer)
    )


@dataclass
class _Filled:
    """What came of one law's suggestions."""

    known: dict[str, float]
    filled: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)

    def line(self, law: ScalingLaw) -> str:
        done = f"fills in {', '.join(self.filled)}" if self.filled else "has nothing to fill in"
        where = (
            f"for {self.known['parameters']:,.0f} parameters without embeddings and "
            f"{self.known['tokens']:,.0f} tokens"
        )
        doubts = law.doubts(self.known)
        return "; ".join([f"{law.name} {done}, {where}", *self.others, *([doubts] if doubts else [])])


def _set(job: Job, name: str, value: Any, done: _Filled) -> None:
    """One suggestion: filled in, kept as the recipe says it, or about something that is not there."""
    stage = job.stage
    assert isinstance(stage, TrainStage)
    if name == BATCH:
        _set_batch(job, stage, float(value), done)
        return
    use, _, setting = name.rpartition(".")
    if not use:
        done.others.append(f"it would take {name} = {value:,.4g}")
        return
    mine = [i for i, one in enumerate(job.uses) if one == use]
    left_out = [i for i in mine if i >= len(stage.methods) or setting not in stage.methods[i]]
    if not mine:
        done.others.append(f"there is no {use} here for its {name} = {value}")
    elif not left_out:
        done.others.append(
            f"{name} = {stage.methods[mine[0]][setting]} stays as the recipe says it (the law: {value})"
        )
    else:
        done.filled.append(f"{name} = {value}")
    for i in left_out:
        old: Any = job.methods[i]
        settings = {f.name: getattr(old, f.name) for f in dataclasses.fields(old)}
        job.methods[i] = make(type(old), settings | {setting: value}, f"{job.where} ({use})")


def _set_batch(job: Job, stage: TrainStage, tokens: float, done: _Filled) -> None:
    if _batch_is_said(stage):
        done.others.append(
            f"the batch of {done.known[BATCH]:,.0f} tokens stays as the recipe says it (the law: "
            f"{tokens:,.0f})"
        )
    elif stage.tokens is None:
        done.others.append("the batch stays as it is: with steps given, it decides how many tokens there are")
    else:
        whole = whole_batch(tokens, TrainStage.row_tokens(job) or 1, stage.accumulate * sharding.world())
        asked = "" if 0.85 < whole / tokens < 1.18 else f" (it asks for {tokens:,.0f})"
        done.filled.append(f"{BATCH} = {whole:,}{asked}")
        job.stage = dataclasses.replace(stage, batch_tokens=whole)


def whole_batch(tokens: float, row: int, parts: int) -> int:
    """The tokens of a step as whole rows (of ``row`` tokens) that ``parts`` micro-batches
    of all ranks share evenly.

    The number of rows keeps three binary digits, within an eighth of what was asked. From four rows a part on
    it is then the same for 1, 2, 4 … parts: to accumulate, or to train on more ranks, changes no result.
    """
    number = max(1, round(tokens / row))
    digit = 1 << max(0, number.bit_length() - 3)
    number = round(number / digit) * digit
    if number % parts:
        number = max(1, round(number / parts)) * parts
    return number * row
