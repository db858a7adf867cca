"""A comparison at several sizes: does the effect survive scale? ``compare --ladder``.

Each size is a whole comparison, the smallest first. Rates are tuned at each, or, where every arm has a method
that makes them the same at all sizes (``transfer = "mup"``), at the smallest and kept.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from trainwright.compare.compare import Comparison
from trainwright.compare.rows import COSTS
from trainwright.compare.spec import Ladder, Size, Spec
from trainwright.compare.statistics import paired
from trainwright.compare.trend import LEAST, table, trend
from trainwright.core import recipe as recipes
from trainwright.core.errors import UserError
from trainwright.life.run import command

Made = Callable[[Spec], Comparison]
"""Makes the comparison of a specification: where it runs, how many at a time."""

SAID = {
    "effect": "An effect is the mean difference of the arm from the baseline, seed by seed; for costs it is "
              "that difference as a share of the baseline's.",
    "line": "Each seed's effects have a line of their own over the logarithm of the scale; intervals are "
            "95 % t intervals over these lines.",
    "words": "Holds: by two one-sided tests the effect changes by less than {holds:.0%} of its mean from the "
             "smallest size to the largest. Grows and shrinks: p < 0.05 of the change, shared by the arms. "
             "Not decided: the seeds show neither.",
    "beyond": "Beyond the largest size nothing was measured. The extrapolation assumes that the effect goes "
              "on along its line, which no measurement here can show; its interval holds the noise of the "
              "seeds and not that the line may be wrong.",
}


def sizes(spec: Spec) -> list[tuple[Size, Spec]]:
    """The comparison of each size.

    Raises:
        UserError: no table ``[compare.ladder]`` or one of fewer than three sizes, two of one name, settings
            that the recipe does not have, or a comparison that cannot be repeated at several sizes.
    """
    ladder, where = _ladder(spec), f"{spec.file}: compare.ladder"
    if len(ladder.sizes) < LEAST:
        raise UserError(f"{where}: it has {len(ladder.sizes)} sizes; a trend needs {LEAST} at least.")
    names = [s.name for s in ladder.sizes]
    for name in {n for n in names if names.count(n) > 1}:
        raise UserError(f"{where}: two sizes are called {name!r}.")
    if spec.settings.until_decided or spec.aa:
        other = "--aa" if spec.aa else "--until-decided"
        raise UserError(f"{where}: a ladder takes as many seeds of all arms at each size; say --ladder "
                        f"without {other}.")
    return [(size, _at(spec, size)) for size in ladder.sizes]


def _ladder(spec: Spec) -> Ladder:
    if spec.settings.ladder is None:
        raise UserError(f"{spec.file}: --ladder needs a table [compare.ladder] with the sizes, such as "
                        'sizes = [{ name = "1 M", set = { "base.model.hidden_size" = 64 } }, …].')
    return spec.settings.ladder


def _at(spec: Spec, size: Size) -> Spec:
    """The same comparison at one size."""
    found, s = copy.deepcopy(spec.table), spec.settings
    for key, value in size.set.items():
        recipes.change(found, key, value, spec.file)
    recipes.parse(found, spec.life)                        # finds what is wrong with the larger recipe
    settings = replace(s, budget=size.budget or s.budget, tune=size.tune or s.tune, ladder=None)
    return replace(spec, settings=settings, table=found, title=f"{spec.title}, {size.name}")


def made(spec: Spec, make: Made) -> list[tuple[Size, Comparison]]:
    """The comparisons of all sizes, checked before the first of them runs."""
    out = [(size, make(one)) for size, one in sizes(spec)]
    transfer = _ladder(spec).transfer
    for i, (_, c) in enumerate(out):
        if transfer is not None:
            _check_transfer(c, transfer)
            if i:
                c.given = {}
        c.check()
    return out


def _check_transfer(c: Comparison, transfer: str) -> None:
    for arm in c.spec.arms:
        methods = c.recipes.stages(arm, {})[c.recipes.stage].get("methods", ())
        if transfer not in [m.get("use") for m in methods]:
            raise UserError(f"{c.spec.file}: compare.ladder: transfer = {transfer!r}, and the arm "
                            f"{arm.name!r} does not have that method in the stage {c.recipes.stage!r}.")


def run(spec: Spec, listed: list[tuple[Size, Comparison]],
        each: Callable[[Size, dict[str, Any]], None]) -> dict[str, Any]:
    """Carry all sizes out, the smallest first; returns the result of the ladder, described in
    ``docs/compare.md``.

    Args:
        listed: as ``made`` returns it.
        each: called with each size and its result as soon as there is one.

    Raises:
        UserError: what a comparison raises, or sizes that do not grow.
    """
    results: list[dict[str, Any]] = []
    for size, c in listed:
        if c.given is not None:
            c.given = listed[0][1].chosen
        results.append(c.run())
        each(size, results[-1])
        scales(spec, results)
    return assemble(spec, [size for size, _ in listed], results)


def scales(spec: Spec, results: Sequence[dict[str, Any]]) -> tuple[str, list[float]]:
    """What the sizes are measured by, FLOPs of the baseline's run or else its parameters, and how much.

    Raises:
        UserError: they do not grow.
    """
    ledgers = [_ledger(r) for r in results]
    unit = "flops" if all(x.get("flops") for x in ledgers) else "parameters"
    found = [float(x.get(unit) or 0.0) for x in ledgers]
    if not found[0] > 0 or any(a >= b for a, b in pairwise(found)):
        raise UserError(f"{spec.file}: compare.ladder: the sizes do not grow: {unit} of the baseline are "
                        f"{', '.join(f'{x:.3g}' for x in found)}.")
    return unit, found


def _ledger(result: dict[str, Any]) -> dict[str, Any]:
    """What a run of the baseline cost."""
    found: dict[str, Any] = next(a["ledger"] for a in result["arms"] if a["name"] == result["baseline"])
    return found


def assemble(spec: Spec, named: Sequence[Size], results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The result of a ladder: its sizes, the points of every effect, and what becomes of it."""
    ladder, first, last = _ladder(spec), results[0], results[-1]
    unit, found = scales(spec, results)
    told = [{"name": size.name, "scale": scale, "caveats": r["caveats"], "warnings": r["warnings"],
             **{k: _ledger(r).get(k) for k in ("parameters", "tokens", "flops")}}
            for size, scale, r in zip(named, found, results, strict=True)]
    arms = [a["name"] for a in first["arms"] if a["name"] != first["baseline"]]
    trends = [one for arm in arms for one in _trends(ladder, arm, len(arms), found, results)]
    said = SAID | {"words": SAID["words"].format(holds=ladder.holds), "rates": _rates(ladder, results)}
    return {"title": spec.title, "recipe": spec.file.name, "stage": first["stage"],
            "metric": first["metric"], "better": spec.better, "baseline": first["baseline"], "arms": arms,
            "seeds": first["seeds"], "unit": unit, "sizes": told, "trends": trends, "said": said,
            "command": command(), "seconds": sum(r["seconds"] for r in results),
            **{k: last[k] for k in ("date", "hardware", "versions", "git", "seed")}}


def _rates(ladder: Ladder, results: Sequence[dict[str, Any]]) -> str:
    if ladder.transfer is not None:
        return (f"Rates were tuned at the smallest size and kept at the others, as {ladder.transfer} makes "
                "them the same.")
    if all(r["tuning"] for r in results):
        return "Rates were tuned at each size, with as many trials for each arm."
    return ("Rates are as written and were not tuned at each size: one that suits a small model may not suit "
            "a larger one, and what changes with scale may be that.")


def _trends(ladder: Ladder, arm: str, arms: int, found: list[float],
            results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What becomes of each effect of an arm, beginning with the metric that decides."""
    by_size = [{row["metric"]: row for row in r["comparisons"] if row["arm"] == arm} for r in results]
    out = []
    for metric in by_size[0]:
        rows = [one[metric] for one in by_size if metric in one]
        why = next((f"{r['arm']}: {r['reason']}" for r in rows if r["verdict"] == "failed"), None)
        head = {"arm": arm, "metric": metric, "better": rows[0]["better"],
                "relative": metric in COSTS, "points": []}
        if why is not None:
            out.append(head | {"word": "failed", "reason": why})
        if why is not None or len(rows) < len(results):
            continue
        effects = [_effects(r) for r in rows]
        if len({len(e) for e in effects}) == 1 and len(effects[0]) > 1:
            points = [{"scale": x, "mean": p.difference, "low": p.low, "high": p.high, "values": e}
                      for x, e in zip(found, effects, strict=True) for p in [paired(e)]]
            seen = trend(found, effects, ladder.holds, ladder.extrapolate, max(1, arms))
            out.append(head | {"points": points} | table(seen))
    return out


def _effects(row: dict[str, Any]) -> list[float]:
    """The differences of a row seed by seed; of a cost, as shares of the baseline's."""
    if row["metric"] not in COSTS:
        return list(row["values"])
    return [d / b if b else 0.0 for d, b in zip(row["values"], row["baseline_values"], strict=True)]
