"""The laws of single kinds of method that act in the training loop."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainwright import families
from trainwright.check import tiny
from trainwright.check.laws import FOUR, difference, expect, key_of, law, link_of, unaided, without
from trainwright.check.subject import Subject, logits, weights
from trainwright.core import contrast
from trainwright.core.claims import match
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import (
    UNTRAINED,
    Batch,
    Controller,
    Data,
    Evaluator,
    Objective,
    Operate,
    Set,
    Stop,
    Surgery,
    Update,
)
from trainwright.families import deltas


@law(Data)
def rows_are_lawful(it: Subject) -> None:
    """A step has the rows that were asked for; language has tokens, shifted targets and places, of one
    shape."""
    run = it.stage()
    for _ in range(3):
        batch = run.pull()
        sizes = {n: len(t) for n, t in batch.items() if isinstance(t, Tensor)}
        expect(set(sizes.values()) == {tiny.ROWS}, f"a step of {tiny.ROWS} rows has {sizes}")
        if "input_ids" in batch and "targets" in batch:
            _check_language(batch)
            check = _check_gaps if "attention_mask" in batch else _check_order
            check(batch)


def _check_language(batch: Batch) -> None:
    ids, targets = batch["input_ids"], batch["targets"]
    names = [n for n in ("input_ids", "targets", "position_ids", "attention_mask") if n in batch]
    for name, t in ((n, batch[n]) for n in names):
        fits = t.dtype == torch.int64 and t.shape == ids.shape
        expect(fits, f"{name} is {t.dtype} {tuple(t.shape)}; it must be int64 {tuple(ids.shape)}")
    known = int(ids.min()) >= 0 and int(max(ids.max(), targets.max())) < tiny.VOCABULARY
    expect(known, "it has tokens that are not in the vocabulary")
    trained = targets != UNTRAINED
    expect(bool(((targets >= 0) | ~trained).all()), "targets are tokens, or -100 where nothing is learned")
    expect(bool(trained.any()), "nothing is learned: every target is -100")


def _check_gaps(batch: Batch) -> None:
    """Rows that are read as a whole: the target of a place is the token that was there, and some are
    hidden."""
    ids, targets = batch["input_ids"], batch["targets"]
    trained = targets != UNTRAINED
    expect(
        bool((batch["attention_mask"].bool() | ~trained).all()),
        "something is learned where the row has no token",
    )
    expect(bool((ids != targets)[trained].any()), "every target is to be seen in its own place")


def _check_order(batch: Batch) -> None:
    """Rows that are read from left to right."""
    ids, targets, places = batch["input_ids"], batch["targets"], batch["position_ids"]
    trained = targets != UNTRAINED
    within = (places[:, 1:] != 0) & trained[:, :-1]
    follow = bool((targets[:, :-1] == ids[:, 1:])[within].all())
    expect(follow, "targets are not the tokens that follow; they come shifted already")
    counts = (places[:, 1:] - places[:, :-1] == 1) | (places[:, 1:] == 0)
    expect(bool((places >= 0).all() and counts.all()), "position_ids must count up from 0 in each document")


@law(Objective)
def it_scores_units(it: Subject) -> None:
    """One finite number per unit, rows first, zero where there is no unit."""
    method = it.make()
    run = tiny.stage(method, it.place())
    batch = run.pull()
    units = method.count(batch)
    values = contrast.values_of(run, key_of(run, method), method, batch)
    first = values.ndim > 0 and len(values) == tiny.ROWS
    expect(first, f"its loss is of shape {tuple(values.shape)}; the {tiny.ROWS} rows come first")
    expect(bool(values.isfinite().all()), "its loss is not finite")
    scored = int((values != 0).sum())
    expect(scored <= units, f"{scored} entries of its loss are not zero, and it counts {units:g} units")


@law(Surgery, where="neutral")
def it_starts_neutral(it: Subject) -> None:
    """Right after the operation the model computes what it computed before, unless the class says ``neutral =
    False``."""
    for kind in it.shapes:
        model = tiny.model(kind).eval()
        before = logits(model)
        try:
            it.make().operate(model, tiny.untouched(model, it.place(), kind))
        except UserError:
            continue
        off = float((logits(model.eval()) - before).abs().max())
        expect(
            off <= 1e-5,
            f"the {kind} model's logits move by {off:.1e} when it is put in; if meant, say neutral = False",
        )


@law(Surgery)
def it_changes_what_it_claims(it: Subject) -> None:
    """Other parameters keep their values (it may freeze them); a map of parameters fits the models before and
    after."""
    surgery, model = it.make(), tiny.model()
    before = dict(model.named_parameters())
    values = {n: p.detach().clone() for n, p in before.items()}
    mine = {n for claim in surgery.claims(model) for n in match(claim, before)}
    moved = surgery.operate(model, tiny.untouched(model, it.place()))
    after = dict(model.named_parameters())
    for name in before.keys() - mine:
        same = name in after and torch.equal(after[name], values[name])
        expect(same, f"it changes {name}, which it does not claim")
    for new, (old, how) in moved.source.items() if moved else ():
        expect(
            new in after and old in values,
            f"its map goes from {old} to {new}, and there are no such parameters",
        )
        expect(
            how(values[old]).shape == after[new].shape,
            f"its map gives {new} the shape {tuple(how(values[old]).shape)}",
        )


@law(Surgery)
def its_delta_comes_back(it: Subject) -> None:
    """On the original model, or on what ``fold`` left where it does not fold, what it saved computes again
    what was trained. For surgeries that read their deltas."""
    for kind in it.shapes if it.cls.load_delta is not Surgery.load_delta else ():
        if it.refused(kind):
            continue
        live, folder, unfolded = it.exported(kind)
        model = families.load(folder / families.BACKBONE, tiny.WHERE) if unfolded else tiny.model(kind)
        deltas.put(model, folder / "adapter")
        off = float((logits(model.eval()) - live).abs().max())
        expect(
            off <= 1e-5, f"its delta on the {kind} model computes something else: logits differ by {off:.1e}"
        )


@law(Surgery)
def it_works_on_weights_in_bfloat16(it: Subject) -> None:
    """With ``precision = "bf16-true"`` what it trains moves, and the output keeps the type of the weights."""
    run = it.stage(precision="bf16-true")
    before = weights(run)
    run.run(until=2)
    expect(bool(difference(before, weights(run))), "no weight moves in two steps in bfloat16")
    kind = logits(run.model).dtype
    expect(kind == torch.bfloat16, f"the logits of a model in bfloat16 become {kind}")


@law(Update)
def params_limit_it(it: Subject) -> None:
    """With ``params`` it leaves the other parameters to the rest of the chain, and remembers nothing of
    them."""
    if it.make().params != "*":
        return
    everywhere = it.stage()
    everywhere.run(until=1)
    for on in ("*_proj.weight", "!*_proj.weight"):
        method = dataclasses.replace(it.make(), params=on)
        run, other = tiny.stage(method, it.place()), without(link_of(method))
        mine = match(on, run.params)
        with torch.no_grad():
            for n in mine:  # what holds of these before the first step moves the gradients of the others
                other.params[n].copy_(run.params[n])
        run.run(until=1)
        other.run(until=1)
        rest = [{n: w for n, w in weights(r).items() if n not in mine} for r in (run, other)]
        at = difference(rest[0], rest[1])
        expect(not at, f"with params = {on!r} it changes {at}")
        kept, all_kept = (set(r.states[f"{method.name}.1"].get("param", {})) for r in (run, everywhere))
        strange = kept ^ set(match(on, all_kept))
        expect(
            not strange,
            f"with params = {on!r} its state is wrong about {', '.join(sorted(strange)[:2])}: "
            "see core.claims.match",
        )


class Listening(Train):
    """A loop that writes down who asked for what."""

    def build(self, journal: Sequence[tuple[int, Surgery]] = ()) -> None:
        self.asked: list[tuple[str, Any]] = []
        super().build(journal)

    def obey(self, who: str, command: Any) -> None:
        self.asked.append((who, command))
        super().obey(who, command)


@law(Controller)
def commands_are_claimed(it: Subject) -> None:
    """It asks for commands that there are, and sets the knobs that it has claimed (the loop refuses
    others)."""
    run = it.stage(train=Listening)
    assert isinstance(run, Listening)
    run.run()
    for _, command in run.asked:
        expect(isinstance(command, (Set, Operate, Stop)), f"it asked for {command!r}, which is no command")


@law(Evaluator)
def measuring_moves_nothing(it: Subject) -> None:
    """The weights of a stage are the same with and without it, and it measures the same numbers twice."""
    run = it.stage(eval_every=1)
    run.run(until=FOUR)
    at = difference(weights(run), _without(it) if it.cls.beside else unaided(""))
    expect(not at, f"with it in a stage, {at} comes out differently")
    before, flags = weights(run), [p.requires_grad for p in run.params.values()]
    first, second = run.measure(), run.measure()
    expect(not difference(before, weights(run)), "it changes the weights")
    expect(flags == [p.requires_grad for p in run.params.values()], "it freezes or thaws parameters")
    expect(not difference(first, second), f"measured twice, {difference(first, second)} differs")
    expect(
        bool(first) and all(type(v) is float for v in first.values()),
        f"it must measure numbers (float): {first}",
    )


def _without(it: Subject) -> dict[str, Tensor]:
    """The weights to which the stage comes that has all of its methods but the one under test."""
    method, place = it.make(), it.place()
    others = [m for m in tiny.beside(method, place) if m is not method]
    run = tiny.built(others, place, kind=it.shapes[0])
    run.run(until=FOUR)
    return weights(run)
