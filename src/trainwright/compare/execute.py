"""Runs of a comparison: in this process, in several, or on Ray. Each leaves a record and runs once."""
from __future__ import annotations

import json
import logging
import os
import queue
import statistics
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from trainwright.compare.failures import FAILURES, Failed, answer, begin, reason
from trainwright.core import files, hardware
from trainwright.core.errors import UserError
from trainwright.core.recipe import Recipe
from trainwright.life.listener import Listener
from trainwright.planning.worker import Worker
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

SHARE = 0.8
"""Part of the memory there is that all runs at a time may come to need."""
SECONDS = 0.5
"""How often it is asked how far a run is."""
ROW = 1 << 16
"""Bytes in which the last row of ``metrics.jsonl`` lies."""
Record = dict[str, Any]
"""Of one run: ``arm, seed, values, numbers`` (what was measured), ``figures`` (its costs), ``curve``,
``hashes``, ``failed``, ``pruned``, ``selected``."""


@dataclass(frozen=True)
class Unit:
    """One run of an arm, its measurement included."""

    key: str
    """Hash of all that the record depends on."""
    arm: str
    seed: int
    values: dict[str, Any]
    recipe: Recipe
    stage: str
    """Whose costs and weights these are."""
    judge: str
    own: tuple[tuple[str, str], ...]
    """Names and keys of the stages that are of its seed or its arm."""
    lent: tuple[str, ...] = ()
    """Those of them that other runs use, too: they stay."""

    @property
    def label(self) -> str:
        tuned = ", ".join(f"{k.rpartition('.')[2]} {v:g}" if isinstance(v, float) else f"{k} {v}"
                          for k, v in self.values.items())
        return f"{self.arm}, seed {self.seed}" + (f", {tuned}" if tuned else "")


class Watch(Listener):
    """Listens to a comparison and to each of its runs. Does nothing until a subclass overrides it."""

    def phase(self, name: str, total: int) -> None:
        """A part of the comparison begins, with ``total`` runs."""

    def begin(self, label: str) -> None:
        """A run begins."""

    def under_way(self, label: str, row: dict[str, float]) -> None:
        """A run in another process is at this step."""

    def done(self, label: str, record: Record) -> None:
        """A run has ended, or its record was there already."""


def recorded(unit: Unit, store: Store) -> Record | None:
    """The record of a run that was made before; one that is damaged is named, and the run made again."""
    file = store.root / "runs" / f"{unit.key}.json"
    if not os.path.lexists(file):
        return None
    try:
        with files.expected(file):
            return _checked(files.read_json(file))
    except files.Damaged as error:
        store.skip(f"runs/{file.name}", str(error))
        return None


def _checked(record: Any) -> Record:
    """A record in which everything is of the kind that its readers take it for."""
    kinds = {"arm": str, "seed": int, "values": dict, "numbers": dict, "figures": dict, "hashes": dict,
             "selected": dict, "curve": dict | None, "failed": str | None, "pruned": bool}
    for key, kind in kinds.items():
        if not isinstance(record[key], kind):
            raise TypeError(f"{key} is of another type")
    if record["curve"] is not None:
        _ = [list(record["curve"][x]) for x in ("step", "tokens", "flops", "seconds")]
        _ = dict(record["curve"]["values"])
    if not all(isinstance(v, int | float) for v in record["numbers"].values()):
        raise TypeError("a number is none")
    return record  # type: ignore[no-any-return]


def run_unit(unit: Unit, root: Path, keep: bool, listener: Listener | None = None) -> Record:
    """Run, measure, keep the record; the weights go unless ``keep`` is set or they were there before.

    Raises what a run raises; ``failures.FAILURES`` are those that count as a result of its arm.
    """
    from trainwright import families
    from trainwright.life.jobs import jobs
    from trainwright.life.run import run
    families.quiet()
    store = Store(root)
    before = {j.stage.name for j in jobs(unit.recipe, store) if store.find(j.stage.name, j.key)}
    made = run(unit.recipe, store, listener)
    stage, judge = made[unit.stage], made[unit.judge].figures
    selected = {name: {k: a.figures[k] for k in ("curated", "kept")}
                for name, a in made.items() if _selects(a)}
    record = {"arm": unit.arm, "seed": unit.seed, "values": unit.values,
              "numbers": with_mean(judge["numbers"][unit.stage]), "figures": stage.figures,
              "curve": curve(stage.metrics()), "failed": None, "pruned": False,
              "hashes": {name: made[name].manifest["hash"] for name, _ in unit.own}, "selected": selected}
    write(store.folder("runs") / f"{unit.key}.json", record)
    for name, _ in unit.own if not keep else ():
        if name not in before and name not in unit.lent:
            store.remove(made[name].path.name, force=True)
    return record


def _selects(artifact: Artifact) -> bool:
    """Whether it is a corpus for which documents were dropped."""
    return any(row["dropped"] for row in artifact.figures.get("curated", ()))


def with_mean(numbers: dict[str, float]) -> dict[str, float]:
    """The same, and ``loss/mean`` over the domains where there are several."""
    losses = [v for n, v in numbers.items() if n.startswith("loss/")]
    return numbers | ({"loss/mean": statistics.mean(losses)} if len(losses) > 1 else {})


def curve(rows: list[dict[str, float]]) -> dict[str, Any] | None:
    """What was measured on the way: ``tokens, flops, seconds``, and the values of each metric there."""
    seen = [r for r in rows if any(n.startswith("eval/") for n in r)]
    if not seen:
        return None
    numbers = [with_mean({n.removeprefix("eval/"): v for n, v in r.items() if n.startswith("eval/")})
               for r in seen]
    return {x: [r[x] for r in seen] for x in ("step", "tokens", "flops", "seconds")} | {
        "values": {n: [one.get(n) for one in numbers] for n in numbers[-1]}}


def write(file: Path, what: Any) -> None:
    """JSON, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(file, what)


def failure(unit: Unit, why: str, pruned: bool = False) -> Record:
    """The record of a run that ended before its end."""
    return {"arm": unit.arm, "seed": unit.seed, "values": unit.values, "numbers": {}, "figures": {},
            "curve": None, "failed": why, "pruned": pruned, "hashes": {}, "selected": {}}


def at_a_time(memory: float | None = None) -> int:
    """Runs to make at a time: on a CPU one for each core, which keeps all of them busier than one run on all
    of them does, as far as there are ``memory`` bytes for each; on a GPU one."""
    if torch.cuda.is_available():
        return 1
    room = SHARE * hardware.memory_bytes() / memory if memory else float("inf")
    return max(1, int(min(os.cpu_count() or 1, room)))


def run_all(units: Sequence[Unit], store: Store, watch: Watch, jobs: int = 1,
            engine: Literal["native", "ray"] = "native", keep: bool = False) -> dict[str, Record]:
    """All runs by key: recorded ones are read, the others run, ``jobs`` of them at a time."""
    out: dict[str, Record] = {}
    todo: list[Unit] = []
    for unit in {u.key: u for u in units}.values():        # the two sides of an A/A comparison share trials
        record = recorded(unit, store)
        if record is None:
            todo.append(unit)
        else:
            out[unit.key] = record
            watch.done(unit.label, record)
    run = _on_ray if engine == "ray" else _parallel if jobs > 1 else _here
    uses = Counter(one for unit in todo for one in unit.own)
    lent = {one for one, times in uses.items() if times > 1}
    there = {one for one in lent if store.find(*one)}
    todo = [replace(unit, lent=tuple(one[0] for one in unit.own if one in lent)) for unit in todo]
    while todo:
        turn, todo = _turn(todo, {one for one in lent if not store.find(*one)})
        out |= run(turn, store, watch, jobs, keep)
    for one in () if keep else lent - there:
        if (made := store.find(*one)) is not None:
            store.remove(made.path.name, force=True)
    return out


def _turn(todo: list[Unit], missing: set[tuple[str, str]]) -> tuple[list[Unit], list[Unit]]:
    """Runs of which no two would make the same stage, and those that wait for them."""
    turn, later, making = list[Unit](), list[Unit](), set[tuple[str, str]]()
    for unit in todo:
        makes = missing.intersection(unit.own)
        if makes & making:
            later.append(unit)
        else:
            turn.append(unit)
            making |= makes
    return turn, later


def _here(units: list[Unit], store: Store, watch: Watch, jobs: int, keep: bool) -> dict[str, Record]:
    out = {}
    for unit in units:
        watch.begin(unit.label)
        try:
            out[unit.key] = run_unit(unit, store.root, keep, watch)
        except FAILURES as error:
            out[unit.key] = failure(unit, reason(error))
        watch.done(unit.label, out[unit.key])
    return out


def _parallel(units: list[Unit], store: Store, watch: Watch, jobs: int, keep: bool) -> dict[str, Record]:
    """Several processes, each with a thread here that hands it runs and notices its death."""
    jobs = min(jobs, len(units))
    pool = _Pool(units, store, watch, max(1, (os.cpu_count() or 1) // jobs), keep)
    threads = [threading.Thread(target=pool.serve, daemon=True) for _ in range(jobs)]
    try:
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    except KeyboardInterrupt as stopped:
        pool.broken.append(stopped)                # before the workers end, which is then no failure of a run
    finally:
        for w in pool.workers:
            w.close()
    if pool.broken:
        raise pool.broken[0]
    return pool.out


class _Pool:
    """What the threads share."""

    def __init__(self, units: list[Unit], store: Store, watch: Watch, cores: int, keep: bool) -> None:
        self.todo: queue.SimpleQueue[Unit] = queue.SimpleQueue()
        for unit in units:
            self.todo.put(unit)
        self.store, self.watch, self.cores, self.keep = store, watch, cores, keep
        self.out: dict[str, Record] = {}
        self.broken: list[BaseException] = []
        self.workers: list[Worker] = []
        self.held = threading.Lock()

    def serve(self) -> None:
        """Have runs done one after another, in a process that is started again where it was killed."""
        worker = Worker(self.cores)
        self.workers.append(worker)
        while not self.broken:
            try:
                unit = self.todo.get_nowait()
            except queue.Empty:
                return
            with self.held:
                self.watch.begin(unit.label)
            try:
                begin(worker, run_unit, unit, self.store.root, self.keep)
                self._follow(worker, unit)
                record = answer(worker)
            except Failed as error:
                record = failure(unit, str(error))
            except BaseException as error:                 # the thread that waits for this one raises it
                self.broken.append(error)
                return
            if self.broken:
                return
            with self.held:
                self.out[unit.key] = record
                self.watch.done(unit.label, record)

    def _follow(self, worker: Worker, unit: Unit) -> None:
        """Tell how far a run is, until its process answers."""
        file, told = self.store.work(unit.stage, dict(unit.own)[unit.stage]) / "metrics.jsonl", b""
        while not worker.answered(SECONDS):
            try:
                with file.open("rb") as rows:
                    rows.seek(max(0, rows.seek(0, os.SEEK_END) - ROW))
                    *_, last, _ = rows.read().rsplit(b"\n", 2)
                row = json.loads(last)
            except (OSError, ValueError):                  # nothing yet, or the stage has ended
                continue
            if last != told:
                told = last
                with self.held:
                    self.watch.under_way(unit.label, row)


def _on_ray(units: list[Unit], store: Store, watch: Watch, jobs: int, keep: bool) -> dict[str, Record]:
    """Each run is a task. The store must be a folder that all nodes share."""
    try:
        import ray
    except ImportError:
        raise UserError("engine = ray needs the package ray: pip install \"trainwright[ray]\".") from None
    started = not ray.is_initialized()
    if started:
        ray.init(num_cpus=jobs if jobs > 1 else None, log_to_driver=False, include_dashboard=False,
                 logging_level=logging.ERROR)
    out: dict[str, Record] = {}
    try:
        task = ray.remote(num_cpus=1, max_retries=0)(_attempt)
        waiting: dict[Any, Unit] = {task.remote(u, store.root.resolve(), keep): u for u in units}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            unit = waiting.pop(ready[0])
            try:
                out[unit.key] = ray.get(ready[0])
            except ray.exceptions.WorkerCrashedError:
                out[unit.key] = failure(unit, "its process was killed (out of memory, most likely)")
            watch.done(unit.label, out[unit.key])
    finally:
        if started:
            ray.shutdown()
    return out


def _attempt(unit: Unit, root: Path, keep: bool) -> Record:
    try:
        return run_unit(unit, root, keep)
    except FAILURES as error:
        return failure(unit, reason(error))


