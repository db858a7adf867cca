"""The laws of kinds of method that act outside of the training loop: merging, decoding, scaling laws."""
from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from trainwright.check import tiny
from trainwright.check.laws import Broken, difference, expect, law
from trainwright.check.subject import Subject, logits
from trainwright.core import registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError
from trainwright.core.method import (
    Arithmetic,
    Decode,
    ScalingLaw,
)
from trainwright.families.tensors import Reader
from trainwright.planning import runs
from trainwright.stages._resolve import BATCH


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


@law(Arithmetic)
def pieces_make_the_whole(it: Subject) -> None:
    """One that says it works entry by entry makes of the pieces of tensors the pieces of the result."""
    method, ctx = it.make(), tiny.merging(it.place())
    if not method.entrywise:
        return
    method.prepare(ctx)
    *models, base = (Reader(f, tiny.WHERE) for f in (*ctx.inputs["models"], *ctx.inputs["base"]))
    for name in base.names:
        tensors, start = [m.get(name).view(-1) for m in models], base.get(name).view(-1)
        whole, third = method.combine(name, tensors, start, ctx), len(start) // 3
        for part in (slice(0, third), slice(third, None)):
            made = method.combine(name, [t[part] for t in tensors], start[part], ctx)
            same = torch.equal(made, whole[part])
            expect(same, "it makes something else of a piece than of the whole tensor")


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
    """The scores of a row do not depend on the rows beside it, and those that it is
    given stay as they are."""
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
    """Minus infinity stays: a method before it in the chain has ruled the token out. Another
    one is left to choose."""
    model, tokens = tiny.model().eval(), torch.arange(3, 51).view(2, 24)
    out = torch.arange(tiny.VOCABULARY) % 3 > 0
    scores = (4 * logits(model)[:, -1]).masked_fill(out, -torch.inf)
    with torch.no_grad():
        made = it.make().processor(model, tiny.context(it.place()))(tokens, scores)
    expect(
        bool((made[:, out] == -torch.inf).all()), "it brings back tokens that were ruled out (minus infinity)"
    )
    expect(
        bool(made.isfinite().any(-1).all()), "of tokens some of which were ruled out it leaves none to choose"
    )


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
