"""The laws that methods of all kinds are held to; those of a single kind are in ``laws_of_kinds.py``."""
from __future__ import annotations

import dataclasses
import inspect
import json
import math
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainwright import families
from trainwright.check import tiny
from trainwright.check.subject import Subject, logits, weights
from trainwright.core import card, checkpoint, registry, settings
from trainwright.core.batches import cut
from trainwright.core.claims import check_claims
from trainwright.core.loop import Train
from trainwright.core.method import (
    KINDS,
    Controller,
    Data,
    Evaluator,
    Method,
    Objective,
    Optimizer,
    Surgery,
    Update,
    Weigh,
)
from trainwright.life import jobs

CLOCKS = ("seconds", "tokens_per_second", "memory_bytes")
"""What two equal runs may differ in."""
TRAINS = (Data, Surgery, Objective, Weigh, Update, Controller, Evaluator)
"""Kinds that have a place in the loop."""
Check = Callable[[Subject], None]


class Broken(Exception):
    """A law that a method breaks, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Law:
    """A law and the kinds of method that are under it."""

    name: str
    kinds: tuple[type[Method], ...]
    check: Check
    where: str = ""
    """Class attribute by which a method puts itself under the law (``off``, ``neutral``); empty: all of the
    kinds are."""
    first: bool = False
    """Whether a method that breaks it is held to no other: those could only say the same."""

    def applies(self, cls: type[Method]) -> bool:
        """Whether a method is under it, by any of its kinds."""
        return issubclass(cls, self.kinds) and (
            not self.where or getattr(cls, self.where) not in (None, False)
        )


LAWS: list[Law] = []


def law(*kinds: type[Method], where: str = "", first: bool = False) -> Callable[[Check], Check]:
    """Makes a law of a function that raises ``Broken``."""
    def add(check: Check) -> Check:
        LAWS.append(Law(check.__name__, kinds, check, where, first))
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
        return next(
            (d for i, (x, y) in enumerate(zip(a, b, strict=True)) if (d := difference(x, y, f"{at}/{i}"))), ""
        )
    same = a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))
    return "" if type(a) is type(b) and same else at or "/"


def key_of(run: Train, method: Method) -> str:
    """The name of a method's state in a run."""
    return next(k for k, m in run.named_methods if m is method)


# ---- the class ---------------------------------------------------------------------------------------


@law(Method, first=True)
def it_defines_what_its_kinds_ask_for(it: Subject) -> None:
    """Every function that a kind leaves to its methods."""
    missing = [
        name
        for kind in KINDS.values()
        if issubclass(it.cls, kind)
        for name, asked in vars(kind).items()
        if _is_left_open(asked) and getattr(it.cls, name) is asked
    ]
    expect(not missing, f"it does not define {' and '.join(dict.fromkeys(missing))}")


def _is_left_open(function: Any) -> bool:
    return inspect.isfunction(function) and NotImplementedError.__name__ in function.__code__.co_names


@law(Method)
def settings_come_back(it: Subject) -> None:
    """From the dataclass to a recipe's table to JSON and back; frozen; the card says the same without an
    import."""
    method = it.make()
    cls: Any = type(method)
    use = registry.use_of(method)
    again = registry.create(json.loads(json.dumps(jobs.table(method, use))), Path(), tiny.WHERE)
    expect(method == again, f"its settings do not come back from a recipe: {method} became {again}")
    names = [f.name for f in dataclasses.fields(method)]
    _check_card(method, use, names)
    for name, doc in settings.docs_of(cls).items():
        expect(bool(doc), f"the setting {name} has no docstring under it")
    for name in names:
        try:
            setattr(method, name, getattr(method, name))
        except dataclasses.FrozenInstanceError:
            continue
        raise Broken(f"the setting {name} can be changed")


def _check_card(method: Method, use: str, names: list[str]) -> None:
    read = card.read(registry.locate(use, Path(), tiny.WHERE), method.name, "")
    shown = {f[0] for f in read.settings}
    expect(shown == set(names), f"its card has the settings {sorted(shown)}, the class has {sorted(names)}")
    kinds = [name for name, kind in KINDS.items() if isinstance(method, kind)]
    listed = [name for name in KINDS if read.is_a(name)]
    expect(
        listed == kinds,
        f"its card calls it a {', '.join(listed)}, and it is a {', '.join(kinds)}: name the kinds as bases",
    )
    expect(bool(read.summary), "it has no docstring")


# ---- state, claims, randomness -----------------------------------------------------------------------


@law(*TRAINS)
def state_is_legal(it: Subject) -> None:
    """Under ``param``, ``shared`` and ``rank`` only, of leaves that a checkpoint can hold; and nothing is
    kept elsewhere."""
    run, method, _ = it.scrambled(1)
    state = run.states[key_of(run, method)]
    for place, content in state.items():
        expect(
            place in ("param", "shared", "rank"),
            f"its state has the key {place!r}; the keys are param, shared and rank",
        )
        check_leaves(content, place)
    for name, leaves in state.get("param", {}).items():
        expect(name in run.params, f"its state has an entry for {name!r}, which is no parameter")
        tensors = all(isinstance(t, Tensor) for t in leaves.values())
        expect(
            tensors, f"the state param/{name} holds something that is no tensor; that belongs under shared"
        )
    derived = {n for n, v in inspect.getmembers(type(method)) if isinstance(v, cached_property)}
    hidden = vars(method).keys() - {f.name for f in dataclasses.fields(method)} - derived
    expect(
        not hidden,
        f"it keeps {', '.join(sorted(hidden))} on itself, where no checkpoint finds it: it belongs in the "
        f"state",
    )
    before = repr(it.make())
    expect(repr(method) == before, f"its settings changed while it ran: {before} became {method!r}")
    for role, seed in tiny.FROZEN.items():
        at = difference(
            dict(run.ctx.frozen[role].state_dict()), dict(tiny.model(it.shapes[0], seed).state_dict())
        )
        expect(not at, f"it changes the {role} ({at}), which it may only read")


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
        expect(
            legal,
            f"the state {at} is a {type(leaf).__name__}; "
            "leaves are tensors, numbers, strings, lists and tables",
        )


@law(*TRAINS)
def claims_match(it: Subject) -> None:
    """On the untouched model, asked twice with one answer and no trace."""
    method, model = it.make(), tiny.model(it.shapes[0])
    before = {n: t.clone() for n, t in model.state_dict().items()}
    expect(method.claims(model) == method.claims(model), "its claims differ when it is asked twice")
    check_claims([method], model)
    expect(not difference(before, dict(model.state_dict())), "to ask for its claims changes the model")


@law(*TRAINS)
def randomness_is_derived(it: Subject) -> None:
    """Whatever the global generators are, the run is the same, and they stay where they were."""
    runs = []
    for seed in (1, 2):
        run, _, drew = it.scrambled(seed)
        expect(not drew, f"it draws from the global generator of {' and '.join(drew)}: use ctx.rng")
        runs.append(run)
    at = difference(weights(runs[0]), weights(runs[1]))
    expect(not at, f"two runs of one seed come to other weights ({at}): draw with ctx.rng only")
    at = difference(runs[0].evaluation, runs[1].evaluation)
    expect(not at, f"two runs of one seed measure other numbers ({at}): draw with ctx.rng only")


INTERRUPTED: dict[str, Any] = {"accumulate": 2, "eval_every": 4}
"""The stage that is interrupted, and begun anew from what was saved."""


@law(*TRAINS)
def two_resumes_are_exact(it: Subject) -> None:
    """Nine steps, and three times three through checkpoints on disk: the same to the bit."""
    whole_rows: list[dict[str, float]] = []
    rows: list[dict[str, float]] = []
    whole = it.stage(**INTERRUPTED)
    whole.run(on_step=lambda row: whole_rows.append(timeless(row)))
    saved = it.place()
    for until in (3, 6, tiny.STEPS):
        leg = it.stage(**INTERRUPTED, saved=checkpoint.newest(saved)[0])
        leg.run(until=until, on_step=lambda row: rows.append(timeless(row)))
        if until < tiny.STEPS:
            checkpoint.save(leg, saved, {})
    pairs = {
        "weights": (weights(whole), weights(leg)),
        "states": (whole.states, leg.states),
        "rows": (whole_rows, rows),
        "numbers": (whole.evaluation, leg.evaluation),
        "knobs": (whole.ctx.knobs, leg.ctx.knobs),
    }
    for what, (a, b) in pairs.items():
        at = difference(a, b)
        expect(
            not at,
            f"a run interrupted twice ends with other {what} ({at}): "
            "keep in the state what must be remembered",
        )


def timeless(row: dict[str, float]) -> dict[str, float]:
    return {k: v for k, v in row.items() if k.rpartition("/")[2] not in CLOCKS}


# ---- whole stages ------------------------------------------------------------------------------------


@law(Data, Surgery, Objective, Weigh)
def micro_batches_do_not_bend_it(it: Subject) -> None:
    """One batch whole, in halves and in quarters: the same gradients. Only the loop divides."""
    run = it.trained(it.shapes[0]).run
    states = run.states
    batch, kept = run.pull(), copied(states)
    whole: dict[str, Tensor] = {}
    for parts in (1, 2, 4):
        run.states = copied(kept)
        grads = run.gradients(cut(batch, parts))
        for name, grad in grads.items():
            off = float((grad - whole.setdefault(name, grad)).abs().max())
            expect(
                off <= 1e-5 * max(1.0, float(whole[name].abs().max())),
                f"in {parts} micro-batches a step has another gradient of {name} (by {off:.1e}): "
                "give one number per unit, undivided, that depends on its own row",
            )
    run.states = states


def copied(leaf: Any) -> Any:
    """States that share nothing with those given."""
    if isinstance(leaf, dict):
        return {k: copied(v) for k, v in leaf.items()}
    return (
        leaf.clone()
        if isinstance(leaf, Tensor)
        else [copied(v) for v in leaf]
        if isinstance(leaf, list)
        else leaf
    )


@law(*TRAINS, where="off")
def off_it_changes_nothing(it: Subject) -> None:
    """With the settings that the class calls ``off``, a stage comes to the weights that it has without the
    method."""
    method = it.make()
    off = dataclasses.replace(method, **method.off)
    run = tiny.stage(off, it.place())
    run.run(until=FOUR)
    at = difference(weights(run), unaided(link_of(off)))
    expect(
        not at, f"with {off.off} it should change nothing, and {at} differs from that of a stage without it"
    )


FOUR = 4
"""Steps of two runs that must come to the same weights."""


def link_of(method: Method) -> str:
    """The parameters on which a method keeps the optimizer before it from its fused kernel, as any link of
    the chain does: the stage without the method then has an idle link there. Empty where it is no link."""
    link = (
        isinstance(method, Update)
        and not isinstance(method, Optimizer)
        and type(method).update is not Update.update
    )
    return method.params if link else ""  # type: ignore[attr-defined]


def without(link: str) -> Train:
    """The stage without the method."""
    return tiny.stage(None, tiny.scratch(), more=[tiny.Idle(params=link)] if link else [])


@cache
def unaided(link: str) -> dict[str, Tensor]:
    """The weights to which such a stage comes."""
    run = without(link)
    run.run(until=FOUR)
    return weights(run)


@law(*TRAINS)
def it_runs_on_another_model(it: Subject) -> None:
    """As GPT-2, which has Conv1D layers, learned positions and tied embeddings: it trains there, or is
    refused in a sentence."""
    if it.refused(it.shapes[1]):
        return
    run, start = it.trained(it.shapes[1])
    expect(math.isfinite(run.row["loss"]), f"the loss is {run.row['loss']}")
    expect(bool(difference(start, weights(run))), "no weight moves in two steps")


@law(Surgery, Update)
def the_export_reloads(it: Subject) -> None:
    """Two steps, folded, written: what transformers alone reads is the same function."""
    for kind in it.shapes:
        if it.refused(kind):
            continue
        live, folder, unfolded = it.exported(kind)
        off = float((logits(families.load(folder, tiny.WHERE).eval()) - live).abs().max())
        expect(
            off <= 1e-4,
            f"the {kind} checkpoint as {'we' if unfolded else 'transformers'} loads it differs from the "
            f"trained model: logits by {off:.1e}",
        )
