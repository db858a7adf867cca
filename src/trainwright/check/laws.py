"""The laws that methods of all kinds are held to, one function each; those of a single kind are in ``_laws_of_kinds.py``."""
from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainwright import families
from trainwright.check import tiny
from trainwright.core import checkpoint, registry, settings
from trainwright.core.batches import cut
from trainwright.core.claims import check_claims
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import Controller, Data, Evaluator, Method, Objective, Optimizer, Surgery, Update, Weigh
from trainwright.families import deltas
from trainwright.life import jobs

CLOCKS = ("seconds", "tokens_per_second", "memory_bytes")
"""What two equal runs may differ in."""
TRAINS = (Data, Surgery, Objective, Weigh, Update, Controller, Evaluator)
"""Kinds that a training stage takes."""
Make = Callable[[], Any]
"""Makes the method under test, anew each time."""
Check = Callable[[Make, Path], None]


class Broken(Exception):
    """A law that a method breaks, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A law and the kinds of method that are under it. ``check`` takes a maker of the method and an empty folder."""

    name: str
    kinds: tuple[type[Method], ...]
    check: Check
    where: str
    """Class attribute by which a method puts itself under the law (``off``, ``neutral``); empty: all of the kinds are."""

    def applies(self, cls: type[Method]) -> bool:
        return issubclass(cls, self.kinds) and (not self.where or getattr(cls, self.where) not in (None, False))


LAWS: list[Law] = []


def law(*kinds: type[Method], where: str = "") -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        LAWS.append(Law(check.__name__, kinds, check, where))
        return check
    return add


def expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Broken(otherwise)


def difference(a: Any, b: Any, at: str = "") -> str:
    """Where two trees of values first differ, to the bit; empty where they do not."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return "" if a.dtype == b.dtype and torch.equal(a, b) else at
    if isinstance(a, dict) and isinstance(b, dict):
        if a.keys() != b.keys():
            return f"{at}/{sorted(a.keys() ^ b.keys())[0]}"
        return next((d for k in a if (d := difference(a[k], b[k], f"{at}/{k}"))), "")
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return next((d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := difference(x, y, f"{at}/{i}"))), "")
    same = a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
    return "" if type(a) is type(b) and same else at or "/"


def weights(run: Train) -> dict[str, Tensor]:
    return {n: t.detach().clone() for n, t in run.model.state_dict().items()}


def key_of(run: Train, method: Method) -> str:
    """The name of a method's state in a run."""
    return next(k for k, m in run.named_methods if m is method)


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=torch.arange(3, 51).view(2, 24)).logits  # type: ignore[no-any-return]


# ---- settings -----------------------------------------------------------------------------------------------------


@law(Method)
def settings_come_back(make: Make, folder: Path) -> None:
    """From the dataclass to a recipe's table to JSON and back; frozen; the card says the same without an import."""
    method = make()
    cls: Any = type(method)
    use = registry.use_of(method)
    again = registry.create(json.loads(json.dumps(jobs.table(method, use))), Path(), tiny.WHERE)
    expect(method == again, f"its settings do not come back from a recipe: {method} became {again}")
    names = [f.name for f in dataclasses.fields(method)]
    card = registry.read_card(registry.locate(use, Path(), tiny.WHERE), method.name, "")
    told = {f[0] for f in (*registry.kind_fields(card.kind), *card.fields)}
    expect(told == set(names), f"its card has the settings {sorted(told)}, the class has {sorted(names)}")
    kind = jobs.kind_of(method)
    expect(card.kind == kind, f"its card calls it a {card.kind}: let the class derive from {kind} itself")
    expect(bool(card.summary), "it has no docstring")
    for name, doc in settings.docs_of(cls).items():
        expect(bool(doc), f"the setting {name} has no docstring under it")
    for name in names:
        try:
            setattr(method, name, getattr(method, name))
        except dataclasses.FrozenInstanceError:
            continue
        raise Broken(f"the setting {name} can be changed")


# ---- state, claims, randomness --------------------------------------------------------------------------------------


@law(*TRAINS)
def state_is_legal(make: Make, folder: Path) -> None:
    """Under ``param``, ``shared`` and ``rank`` only, of leaves that a checkpoint can hold; and nothing is kept elsewhere."""
    method = make()
    before = repr(method)
    run = tiny.stage(method, folder, eval_every=2)
    run.run(until=3)
    state = run.states[key_of(run, method)]
    for place, content in state.items():
        expect(place in ("param", "shared", "rank"), f"its state has the key {place!r}; the keys are param, shared and rank")
        check_leaves(content, place)
    for name, leaves in state.get("param", {}).items():
        expect(name in run.params, f"its state has an entry for {name!r}, which is no parameter")
        tensors = all(isinstance(t, Tensor) for t in leaves.values())
        expect(tensors, f"the state param/{name} holds something that is no tensor; that belongs under shared")
    derived = {n for n, v in inspect.getmembers(type(method)) if isinstance(v, cached_property)}
    hidden = vars(method).keys() - {f.name for f in dataclasses.fields(method)} - derived
    expect(not hidden, f"it keeps {', '.join(sorted(hidden))} on itself, where no checkpoint finds it: put it into the state")
    expect(repr(method) == before, f"its settings changed while it ran: {before} became {method!r}")


def check_leaves(leaf: Any, at: str) -> None:
    """Refuse what does not come back from a checkpoint as it was."""
    if isinstance(leaf, dict):
        for k, v in leaf.items():
            expect(isinstance(k, str), f"the state {at} has the key {k!r}; keys are strings")
            check_leaves(v, f"{at}/{k}")
    elif isinstance(leaf, list):
        for i, v in enumerate(leaf):
            check_leaves(v, f"{at}/{i}")
    else:
        legal = isinstance(leaf, Tensor) or type(leaf) in (type(None), bool, int, float, str)
        expect(legal, f"the state {at} is a {type(leaf).__name__}; leaves are tensors, numbers, strings, lists and tables")


@law(*TRAINS)
def claims_match(make: Make, folder: Path) -> None:
    """On the untouched model, asked twice with one answer and no trace."""
    method, model = make(), tiny.model()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expect(method.claims(model) == method.claims(model), "its claims differ when it is asked twice")
    check_claims([method], model)
    expect(not difference(before, dict(model.state_dict())), "to ask for its claims changes the model")


@law(*TRAINS)
def randomness_is_derived(make: Make, folder: Path) -> None:
    """Whatever the global generators are, the run is the same, and they stay where they were."""
    runs = []
    for seed in (1, 2):
        with tiny.scrambled(seed):
            before = tiny.generators()
            run = tiny.stage(make(), folder, eval_every=2)
            run.run(until=3)
            drew = [name for name, state in tiny.generators().items() if state != before[name]]
        expect(not drew, f"it draws from the global generator of {' and '.join(drew)}: use ctx.rng")
        runs.append(run)
    at = difference(weights(runs[0]), weights(runs[1]))
    expect(not at, f"two runs of one seed come to other weights ({at}): draw with ctx.rng only")
    at = difference(runs[0].evaluation, runs[1].evaluation)
    expect(not at, f"two runs of one seed measure other numbers ({at}): draw with ctx.rng only")


@law(*TRAINS)
def two_resumes_are_exact(make: Make, folder: Path) -> None:
    """Nine steps, and three times three through checkpoints on disk: the same to the bit."""
    whole = tiny.stage(make(), folder, accumulate=2, eval_every=4)
    whole_rows: list[dict[str, float]] = []
    rows: list[dict[str, float]] = []
    whole.run(on_step=lambda row: whole_rows.append(timeless(row)))
    for until in (3, 6, tiny.STEPS):
        leg = resumed(make(), folder)
        leg.run(until=until, on_step=lambda row: rows.append(timeless(row)))
        checkpoint.save(leg, folder / "checkpoints", {})
    pairs = {"weights": (weights(whole), weights(leg)), "states": (whole.states, leg.states), "rows": (whole_rows, rows),
             "numbers": (whole.evaluation, leg.evaluation), "knobs": (whole.ctx.knobs, leg.ctx.knobs)}
    for what, (a, b) in pairs.items():
        at = difference(a, b)
        expect(not at, f"a run interrupted twice ends with other {what} ({at}): keep in the state what must be remembered")


def timeless(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k not in CLOCKS}


def resumed(method: Method, folder: Path) -> Train:
    """The stage from its newest checkpoint, made in the order in which a real one is."""
    path, _ = checkpoint.newest(folder / "checkpoints")
    rest = checkpoint.read(path) if path else {}
    journal = checkpoint.journal_of(rest, Path()) if rest else ()
    run = tiny.stage(method, folder, accumulate=2, eval_every=4, journal=journal)
    if path:
        checkpoint.load_into(run, path, rest)
    return run


# ---- whole stages ---------------------------------------------------------------------------------------------------


@law(Data, Surgery, Objective, Weigh)
def micro_batches_do_not_bend_it(make: Make, folder: Path) -> None:
    """One batch whole, in halves and in quarters: the same gradients. Only the loop divides."""
    run = tiny.stage(make(), folder)
    run.run(until=2)
    batch, kept = run.pull(), copied(run.states)
    whole: dict[str, Tensor] = {}
    for parts in (1, 2, 4):
        run.states = copied(kept)
        grads = run.gradients(cut(batch, parts))
        for name, grad in grads.items():
            off = float((grad - whole.setdefault(name, grad)).abs().max())
            expect(off <= 1e-5 * max(1.0, float(whole[name].abs().max())),
                   f"in {parts} micro-batches a step has another gradient of {name} (by {off:.1e}): give one number per unit, "
                   "undivided, that depends on its own row")


def copied(leaf: Any) -> Any:
    """States that share nothing with those given."""
    if isinstance(leaf, dict):
        return {k: copied(v) for k, v in leaf.items()}
    return leaf.clone() if isinstance(leaf, Tensor) else [copied(v) for v in leaf] if isinstance(leaf, list) else leaf


@law(*TRAINS, where="off")
def off_it_changes_nothing(make: Make, folder: Path) -> None:
    """With the settings that the class calls ``off``, a stage comes to the weights that it has without the method."""
    method = make()
    off = dataclasses.replace(method, **method.off)
    runs = [tiny.stage(off, folder), without(off, folder)]
    for run in runs:
        run.run(until=4)
    at = difference(weights(runs[0]), weights(runs[1]))
    expect(not at, f"with {off.off} it should change nothing, and {at} differs from that of a stage without it")


def without(method: Method, folder: Path) -> Train:
    """The stage without the method. A link keeps the optimizer before it from its fused kernel: then both stages have one."""
    link = isinstance(method, Update) and not isinstance(method, Optimizer) and type(method).update is not Update.update
    return tiny.stage(None, folder, more=[tiny.Idle(params=method.params)] if link else [])  # type: ignore[attr-defined]


@law(*TRAINS)
def it_runs_on_another_model(make: Make, folder: Path) -> None:
    """GPT-2 has Conv1D layers, learned positions and tied embeddings: it trains there, or is refused in a sentence."""
    try:
        run = tiny.stage(make(), folder, kind=tiny.GPT2)
    except UserError:
        return
    before = weights(run)
    run.run(until=2)
    expect(math.isfinite(run.row["loss"]), f"the loss is {run.row['loss']}")
    expect(bool(difference(before, weights(run))), "no weight moves in two steps")


@law(Surgery, Update)
def the_export_reloads(make: Make, folder: Path) -> None:
    """Two steps, folded, written: what transformers alone reads is the same function."""
    for kind in tiny.SHAPES:
        try:
            run = tiny.stage(make(), folder, kind=kind)
        except UserError:
            continue
        run.run(until=2)
        with run.viewed(), torch.no_grad():
            live = logits(run.model)
            unfolded = deltas.write(run.model, run.performed, run.ctx.seed, folder / kind, run.ctx.tokenizer)
        off = float((logits(families.load(folder / kind, tiny.WHERE).eval()) - live).abs().max())
        expect(off <= 1e-4, f"the {kind} checkpoint as {'we' if unfolded else 'transformers'} loads it differs from the trained "
               f"model: logits by {off:.1e}")
