"""Run a recipe: each stage is found in the store or made, and what is made is committed whole."""
from __future__ import annotations

import shutil
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from trainwright.core import ending, sharding
from trainwright.core.errors import UserError, located
from trainwright.core.recipe import Recipe
from trainwright.life.jobs import Job, jobs
from trainwright.life.listener import Listener
from trainwright.life.saving import CHECKPOINTS
from trainwright.life.stage_run import StageRun
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store
from trainwright.storage.versions import git_commit, versions

DISCARD_SECONDS = 5.0
"""How long to go on removing what still writes."""


def run(recipe: Recipe, store: Store, listener: Listener | None = None) -> dict[str, Artifact]:
    """All stages in order; returns their artifacts by name. Run again, it goes on where it was interrupted.

    Raises:
        UserError: whatever the user can put right, a stage that this machine cannot hold before anything
            runs; nothing half-written is left in the store.
        Interrupted: a signal asked to stop.
    """
    with ending.heard():
        return _run(recipe, store, listener or Listener())


def _run(recipe: Recipe, store: Store, listener: Listener) -> dict[str, Artifact]:
    sharding.start()
    made: dict[str, Artifact] = {}
    ready = _prepared(recipe, store)
    sharding.led(partial(_check_memory, ready, store))       # rank 0 alone: the others may see another amount
    while left := [job for job in ready if job.stage.name not in made]:
        made[left[0].stage.name] = _stage(left[0], recipe, store, listener)
        if any(stage.open_ended for stage in recipe.stages):    # what was just measured may end a repetition
            ready = _prepared(recipe, store)
    return made


def _prepared(recipe: Recipe, store: Store) -> list[Job]:
    prepare = partial(jobs, recipe, store)
    return sharding.led(prepare) or prepare()                   # rank 0 first: it may unpack a model


def _check_memory(ready: list[Job], store: Store) -> None:
    for job in ready:
        if not store.find(job.stage.name, job.key):
            job.stage.afford(job, store)


def _stage(job: Job, recipe: Recipe, store: Store, listener: Listener) -> Artifact:
    stage = job.stage
    found = sharding.together(store.find(stage.name, job.key))
    if found is None:
        with ExitStack() as held:
            sharding.led(lambda: held.enter_context(store.claim(stage.name, job.key)))
            found = sharding.together(store.find(stage.name, job.key))      # another process may have made it
            if found is None:
                return _make(job, recipe, store, listener)
    elif sharding.main():
        store.tidy(stage.name, job.key)
    listener.stage(stage.name, stage.kind, "cached", found.figures | {"path": str(found.path)})
    return found  # type: ignore[no-any-return]


def _make(job: Job, recipe: Recipe, store: Store, listener: Listener) -> Artifact:
    stage, started, clock = job.stage, datetime.now(UTC), time.perf_counter()
    work = store.work(stage.name, job.key)
    out = work / "artifact.tmp"
    if sharding.main():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
    sharding.barrier()
    sharding.led(partial(_look, job, store))
    inputs = sharding.led(partial(_inputs, job, store)) or _inputs(job, store)
    site = StageRun(job, store, work, out, listener, inputs)

    def commit(figures: dict[str, Any]) -> None:
        if sharding.main():
            seconds = time.perf_counter() - clock
            store.commit(out, stage.name, job.key, manifest(site, recipe, figures, started, seconds))

    try:
        with located(job.where):
            figures = stage.run(site)
            sharding.everywhere(partial(commit, figures))
    except BaseException as error:
        told = _given_up(site, error)
        listener.stage(stage.name, stage.kind, "failed", {"why": str(told) or type(told).__name__})
        if told is error:
            raise
        raise told from None
    artifact = Artifact(store.path(stage.name, job.key))
    listener.stage(stage.name, stage.kind, "finished", artifact.figures | {"path": str(artifact.path)})
    return artifact


def _given_up(site: StageRun, error: BaseException) -> BaseException:
    """Remove what was begun; returns the error to raise. A stage that was interrupted goes on from its
    scratch, and training from its checkpoints; of one that failed otherwise nothing is left but what was paid
    for."""
    ending.arrived()
    failed = isinstance(error, Exception)
    gone = [p for p in (site.store.root, site.work, site.out, *(f for fs in site.inputs.values() for f in fs))
            if failed and not p.exists()]
    _discard(site.out)
    if failed and sharding.main() and not any((site.work / CHECKPOINTS).glob("step-*[0-9]")):
        _prune(site.work, site.kept)
    if gone:
        return UserError(f"{site.job.where}: {gone[0]} was removed while the stage ran; run the same command "
                         "again.")
    return error


def _prune(folder: Path, kept: list[Path]) -> None:
    """Remove everything in a folder but its lock and what is kept."""
    for child in folder.iterdir() if folder.is_dir() else ():
        if child in kept or child.name == "lock":
            continue
        if child.is_symlink() or not child.is_dir():
            child.unlink(missing_ok=True)
        elif any(child in k.parents for k in kept):
            _prune(child, kept)
        else:
            shutil.rmtree(child, ignore_errors=True)


def _discard(folder: Path) -> None:
    """Remove what was begun. A table that was given up half way may still write a file while this goes on,
    hence again."""
    until = time.monotonic() + DISCARD_SECONDS
    shutil.rmtree(folder, ignore_errors=True)
    while folder.exists() and time.monotonic() < until:
        time.sleep(0.01)
        shutil.rmtree(folder, ignore_errors=True)


def _look(job: Job, store: Store) -> None:
    """Look whether the artifacts that a stage reads are as they were written."""
    for source in job.sources:
        if source.job is not None:
            store.opened(Artifact(store.path(source.job.stage.name, source.job.key)))


def _inputs(job: Job, store: Store) -> dict[str, list[Path]]:
    return {role: [s.path(store, job.where) for s in sources] for role, sources in job.inputs.items()}


def command() -> str:
    """What started this process, without the path of the program."""
    program = Path(sys.argv[0])
    name = "trainwright" if program.name in ("__main__.py", "trainwright") else program.name
    return " ".join([name, *sys.argv[1:]])


def manifest(site: StageRun, recipe: Recipe, figures: dict[str, Any], started: datetime,
             seconds: float) -> dict[str, Any]:
    """What an artifact came from, and what was measured."""
    job, store = site.job, site.store
    inputs = {role: [{"stage": s.name, "hash": s.hash, "artifact": s.job.key if s.job else None,
                      "path": str(s.path(store, job.where))} for s in sources]
              for role, sources in job.inputs.items()}
    return {"stage": job.stage.name, "kind": job.stage.kind, "hash": job.key, "title": recipe.title,
            "settings": job.settings, "seed": job.seed, "inputs": inputs, "versions": versions(),
            "git": git_commit(recipe.root),
            "command": command(), "started": started.isoformat(timespec="seconds"),
            "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "seconds": round(seconds, 3), "ranks": sharding.world(), "figures": figures, "texts": site.texts,
            "pictures": site.pictures}
