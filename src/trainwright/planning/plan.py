"""What a recipe will do and what it will cost, before it runs."""
from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

from trainwright import families
from trainwright.core import ledger, sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError, located
from trainwright.core.method import Method
from trainwright.core.recipe import Recipe
from trainwright.life import working
from trainwright.life.jobs import Job, jobs
from trainwright.planning.predicted import Predicted, Unpredictable, predict
from trainwright.planning.probe import Probes
from trainwright.stages._memory import floor, refuse
from trainwright.stages._training import stage_of
from trainwright.storage.store import Store

LARGEST = 6e8
"""Parameters up to which a plan makes the model and probes it; beyond them it predicts."""
CORPUS_LEAVES = 180 * 2**20
"""What making a corpus leaves behind in its process: code and caches of the table engine (measured)."""


@dataclass
class StagePlan:
    """One stage: who acts where, and the figures that can be known before running."""

    job: Job
    cached: bool
    places: list[tuple[str, list[str]]]
    figures: dict[str, float] = field(default_factory=dict)
    """parameters, trainable, steps, tokens, flops, seconds, memory_bytes: as far as known."""
    owns: list[str] = field(default_factory=list)
    note: str = ""
    predicted: Predicted | None = None
    """Where its memory was predicted and not tried."""


@dataclass
class Plan:
    """A recipe's stages as planned."""

    recipe: Recipe
    stages: list[StagePlan]

    def __str__(self) -> str:
        lines = [self.recipe.title]
        for one in self.stages:
            state = "in the store" if one.cached else "to run"
            lines.append(f"{one.job.stage.name} ({one.job.stage.kind}, {state})")
            lines += [f"  {place:12} {' -> '.join(who)}" for place, who in one.places]
            lines += [f"  {name:12} {value:,.0f}" for name, value in one.figures.items()]
            lines += [f"  {one.note}"] if one.note else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Machine:
    """A machine that is not this one: so many ranks of so many bytes each."""

    ranks: int = 1
    memory: float = float("inf")

    def refuse(self, needed: float, where: str) -> None:
        """Raise a UserError where a rank would need more than it has."""
        if needed > self.memory:
            sizes = f"needs about {needed / 2**30:.1f} GiB of memory and has {self.memory / 2**30:.1f} GiB"
            raise UserError(
                f"{where}: each of {self.ranks} ranks {sizes}: take more ranks, raise accumulate, set "
                "checkpointing = true, or train fewer parameters (trainwright plan --fit proposes settings)."
            )


def plan(recipe: Recipe, store: Store, estimate: bool = True, probes: Probes | None = None,
         machine: Machine | None = None) -> Plan:
    """Check everything that can be checked before running, and estimate what each stage will cost.

    An estimate takes seconds for each training stage. ``probes`` are kept from one plan to the next, so that
    none is taken twice. For another ``machine`` memory is predicted (``predicted.predict``), time is not.

    Raises:
        UserError: any mistake in the recipe, claims that collide, or more memory than the machine has.
    """
    with nullcontext(probes) if probes else Probes() as taken:
        out = Plan(recipe, [])
        for job in jobs(recipe, store):
            if estimate:
                working.on(f"estimating the stage {job.stage.name}")
            check = machine.refuse if machine else refuse
            one = examine(recipe, job, store, taken if estimate else None, check, machine)
            if not one.cached:
                check(one.figures.get("memory_bytes", 0.0), job.where)
            out.stages.append(one)
        return out


def examine(recipe: Recipe, job: Job, store: Store, probes: Probes | None,
            check: Callable[[float, str], None], machine: Machine | None = None) -> StagePlan:
    """One stage: with measured figures where it is in the store, else with estimates where ``probes`` exist.

    Before it is probed, ``check`` gets the bytes that it needs at the very least, and where it stands.
    """
    found = store.find(job.stage.name, job.key)
    out = StagePlan(job, found is not None, places(job))
    if not job.stage.trains:
        return out
    if found is not None:
        names = {"parameters": "parameters", "trainable_parameters": "trainable", "steps": "steps",
                 "tokens": "tokens", "flops": "flops", "seconds": "seconds",
                 "peak_memory_bytes": "memory_bytes"}
        out.figures = {mine: found.figures[theirs] for theirs, mine in names.items()}
    elif probes is not None:
        with located(job.where):
            try:
                _estimate(recipe, job, store, probes, out, check, machine)
            except (Unknown, Unpredictable) as why:
                out.note = str(why)
    return out


def places(job: Job) -> list[tuple[str, list[str]]]:
    """Who acts in which place, in order."""
    acting = [(place, [words(m) for m in methods]) for place, methods in job.stage.places(job)]
    return acting + ([("notes", job.told)] if job.told else [])


def words(method: Method) -> str:
    """A method with the settings that differ from their defaults."""
    changed = {f.name: v for f in dataclasses.fields(method)  # type: ignore[arg-type]
               if (v := getattr(method, f.name)) != f.default and v not in ((), {})}
    return method.name + (f"({', '.join(f'{k}={v!r}' for k, v in changed.items())})" if changed else "")


def _claims(claims: list[str]) -> str:
    """``knob:lr``, or how many parameters and one of them."""
    return ", ".join(claims) if len(claims) < 4 else f"{len(claims)} parameters, {claims[0]} …"


class Unknown(Exception):
    """A figure that cannot be known before an earlier stage has run."""


def _estimate(recipe: Recipe, job: Job, store: Store, probes: Probes, out: StagePlan,
              check: Callable[[float, str], None], machine: Machine | None) -> None:
    stage = stage_of(job)
    config = stage.start_config(job, store)
    if config is None:
        raise Unknown("the model is not on this machine yet: nothing is estimated.")
    ctx = Context(seed=job.seed, device=sharding.device(), root=job.root)
    ctx.batch_rows = stage.batch_rows(job)
    data = job.source("data")
    there = data is None or data.ready(store)
    if there:
        ctx.inputs = {"data": [s.path(store, job.where) for s in job.inputs.get("data", ())]}
        ctx.names = {"data": [s.name for s in job.inputs.get("data", ())]}
    skeleton = families.skeleton(config, job.where)
    total = sum(p.numel() for p in skeleton.parameters())
    tokens = stage.row_tokens(job)
    out.figures["parameters"] = total
    out.owns = [f"{m.name}: {_claims(sorted(claims))}" for m in job.methods if (claims := m.claims(skeleton))]
    if stage.epochs is None or there:
        out.figures["steps"] = ctx.steps = stage.steps_of(job, ctx)
        out.figures["tokens"] = ctx.steps * ctx.batch_rows * (tokens or 0)
    if machine is None:
        check(floor(job, skeleton, store), job.where)
    source = stage.origin(job)
    if source is not None and not job.ready(store) and source.unfolded(store, job.where):
        raise Unknown("a part of the model is not in its config: "
                      "memory and time are estimated once it is made.")
    if tokens is None and not job.ready(store):
        raise Unknown("memory and time are estimated for language models.")
    if machine is not None or total > LARGEST:
        _predict(job, store, out, machine)
        return
    probe, rows = probes.of(recipe, job, store), ctx.batch_rows // stage.accumulate
    if probe is None:
        raise Unknown("its objective scores more than tokens: memory and time are estimated once its data is "
                      "made.")
    memory = probe.memory_bytes(rows) + left_behind(job, store)
    out.figures |= {"parameters": probe.parameters, "trainable": probe.trainable, "memory_bytes": memory}
    if "steps" in out.figures:
        out.figures["flops"] = probe.flops_per_token * out.figures["tokens"]
        out.figures["seconds"] = probe.seconds(rows, stage.accumulate, ctx.steps)


def _predict(job: Job, store: Store, out: StagePlan, machine: Machine | None) -> None:
    """Memory of a machine that is not this one, or of a model that is too large to try."""
    found = out.predicted = predict(job, store, machine.ranks if machine else 1)
    own = 0.0 if machine or sharding.device().type != "cpu" else ledger.memory() + left_behind(job, store)
    out.figures |= {"parameters": found.parameters, "trainable": found.trainable,
                    "memory_bytes": found.peak + own}
    if "tokens" in out.figures:
        out.figures["flops"] = found.flops_per_token * out.figures["tokens"]
    parts = {"weights": found.weights, "gradients": found.gradients, "optimizer": found.states,
             "gathered": found.gathered, "activations and the rest": found.activations}
    told = ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items() if size)
    out.note = f"predicted, not tried. GiB of a rank: {told}. The time is the FLOPs over what a rank does."


def left_behind(job: Job, store: Store) -> float:
    """Bytes that making its inputs leaves in use in the same process, where memory is that of a process."""
    unmade = [s.job for s in job.sources if s.job is not None and not s.ready(store)]
    if sharding.device().type != "cpu" or not unmade:
        return 0.0
    if any(j.stage.makes == "corpus" for j in unmade):
        return CORPUS_LEAVES
    return max(left_behind(j, store) for j in unmade)
