"""The laws of single kinds of method."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainwright import families
from trainwright.check import tiny
from trainwright.check.laws import FOUR, Broken, difference, expect, key_of, law, link_of, unaided, without
from trainwright.check.subject import Subject, logits, weights
from trainwright.core import contrast, registry
from trainwright.core.claims import match
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.loop import Train
from trainwright.core.method import (
    UNTRAINED,
    Arithmetic,
    Batch,
    Controller,
    Data,
    Decode,
    Evaluator,
    Objective,
    Operate,
    ScalingLaw,
    Set,
    Stop,
    Surgery,
    Update,
)
from trainwright.families import deltas
from trainwright.planning import runs
from trainwright.stages._resolve import BATCH


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


@law(Arithmetic)
def equal_tensors_stay(it: Subject) -> None:
    """Of equal models it makes the same model; the type and the shape stay, and nothing that it is given is
    changed."""
    method, ctx = it.make(), tiny.merging(it.place())
    method.prepare(ctx)
    draw = torch.Generator().manual_seed(0)
    for shape in ((5, 7), (6,), ()):
        t = torch.randn(shape, generator=draw)
        given = [t.clone(), t.clone()]
        made = method.combine("layer.weight", given, t.clone(), ctx)
        expect(
            made.dtype == t.dtype and made.shape == t.shape,
            f"it makes {made.dtype} {tuple(made.shape)} of {t.dtype} {shape}",
        )
        same = torch.allclose(made, t, rtol=1e-5, atol=1e-5)
        expect(same, f"of two equal tensors of shape {shape} it makes another one")
        expect(all(torch.equal(g, t) for g in given), "it changes the tensors that it is given")


@law(Arithmetic)
def a_merge_is_the_same_twice(it: Subject) -> None:
    """The same models give the same model, whatever the global generators are."""
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(6, 4, generator=draw) for _ in range(3)]
    found = []
    for seed in (1, 2):
        method, ctx = it.make(), tiny.merging(it.place())
        method.prepare(ctx)
        with tiny.scrambled(seed):
            found.append(
                method.combine("layer.weight", [t.clone() for t in tensors[:2]], tensors[2].clone(), ctx)
            )
    expect(torch.equal(*found), "two merges of the same models differ: draw with ctx.rng only")


@law(Decode)
def scores_stay_scores(it: Subject) -> None:
    """Of the scores of the next token it makes scores, the same twice, and leaves a token to choose."""
    model, tokens = tiny.model().eval(), torch.arange(3, 51).view(2, 24)
    scores = logits(model)[:, -1]
    found = []
    for seed in (1, 2):
        with tiny.scrambled(seed), torch.no_grad():
            found.append(it.make().processor(model, tiny.context(it.place()))(tokens, scores.clone()))
    made = found[0]
    same = made.dtype == scores.dtype and made.shape == scores.shape
    expect(same, f"of scores {scores.dtype} {tuple(scores.shape)} it makes {made.dtype} {tuple(made.shape)}")
    expect(not bool(made.isnan().any()), "it makes scores that are not numbers")
    expect(bool(made.isfinite().any(-1).all()), "it leaves no token to choose")
    expect(
        torch.equal(*found), "the same tokens and scores give others the second time: draw with ctx.rng only"
    )


@law(Decode)
def rows_are_shaped_alone(it: Subject) -> None:
    """The scores of a row do not depend on the rows beside it, and those that it is given stay as they are."""
    model, tokens = tiny.model().eval(), torch.arange(3, 51).view(2, 24)
    scores = 4 * logits(model)[:, -1]
    given, made = scores.clone(), []
    with torch.no_grad():
        for part in (slice(0, 2), slice(0, 1), slice(1, 2)):
            shape = it.make().processor(model, tiny.context(it.place()))
            made.append(shape(tokens[part], given[part]))
    expect(torch.equal(given, scores), "it changes the scores that it is given")
    alone = torch.cat(made[1:])
    same = torch.equal(alone.isfinite(), made[0].isfinite()) and torch.allclose(alone, made[0], atol=1e-4)
    expect(same, "it makes other scores of a row when another row stands beside it")


@law(Decode)
def what_is_ruled_out_stays_out(it: Subject) -> None:
    """Minus infinity stays: a method before it in the chain has ruled the token out. Another one is left to choose."""
    model, tokens = tiny.model().eval(), torch.arange(3, 51).view(2, 24)
    out = torch.arange(tiny.VOCABULARY) % 3 > 0
    scores = (4 * logits(model)[:, -1]).masked_fill(out, -torch.inf)
    with torch.no_grad():
        made = it.make().processor(model, tiny.context(it.place()))(tokens, scores)
    expect(bool((made[:, out] == -torch.inf).all()), "it brings back tokens that were ruled out (minus infinity)")
    expect(bool(made.isfinite().any(-1).all()), "of tokens some of which were ruled out it leaves none to choose")


FACTS = ({"parameters": 1e6, "tokens": 2e7}, {"parameters": 3e9, "tokens": 6e10})
"""What is known of a small run and of a large one."""


@law(ScalingLaw)
def suggestions_are_settings(it: Subject) -> None:
    """It suggests settings that a recipe can have, the same ones when it is asked twice, and leaves the facts
    as they are."""
    method = it.make()
    for facts in FACTS:
        known = dict(facts)
        suggested = method.suggest(known)
        expect(bool(suggested), "it suggests nothing")
        expect(
            not difference(suggested, method.suggest(known)) and known == facts,
            "asked twice it suggests something else",
        )
        expect(isinstance(method.doubts(known), str), "doubts are words")
        for name, value in suggested.items():
            use, _, setting = name.rpartition(".")
            cls: Any = registry.find(use) if use else None
            there = setting in {f.name for f in dataclasses.fields(cls)} if use else name == BATCH
            expect(there, f"it suggests {name}, which is no setting of a recipe")
            expect(
                not isinstance(value, (int, float)) or 0 < value < float("inf"),
                f"it suggests {name} = {value}",
            )


@law(ScalingLaw)
def a_fit_finds_the_law_again(it: Subject) -> None:
    """On rows that follow it, the intervals hold its constants; its error is measured; what it needs of a row
    must be there."""
    method, ctx = it.make(), tiny.context(it.place())
    rows = method.made_up(ctx)
    before = [dict(r) for r in rows]
    found, again = (runs.fitted(method, rows, ctx, tiny.WHERE) for _ in range(2))
    expect(type(found.law) is type(method), f"its fit makes a {found.law.name} of it")
    expect(
        found == again and rows == before,
        "fitted twice on the same rows it finds something else, or it changes the rows",
    )
    constants = runs.intervals(found)
    expect(
        bool(constants),
        "its draws do not differ in any setting, so that nobody knows how sure its constants are",
    )
    for name, (low, high) in constants.items():
        true = getattr(method, name)
        expect(
            low <= true <= high,
            f"rows made with {name} = {true} give it an interval of {low:.4g} to {high:.4g}",
        )
    measured = bool(found.errors) and all(isinstance(v, float) and v == v for v in found.errors.values())
    expect(measured, f"its error on rows that the fit has not seen must be numbers: {found.errors}")
    _check_refused(rows[:1], method, ctx, "a single row is enough for it")
    for column in method.columns:
        short = [{k: v for k, v in r.items() if k != column} for r in rows]
        _check_refused(short, method, ctx, f"it is fitted on rows without {column}")


def _check_refused(rows: Sequence[runs.Row], method: ScalingLaw, ctx: Context, otherwise: str) -> None:
    try:
        runs.fitted(method, rows, ctx, tiny.WHERE)
    except UserError:
        return
    raise Broken(otherwise)
