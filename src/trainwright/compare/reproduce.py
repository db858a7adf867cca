"""Claims of papers, put to the test: two arms over paired seeds, and the verdict that follows.

A claim names its suite, its arms, its metric and what it expects; data, budget, seeds and tuning are the
suite's. Claims of the same two arms share their runs, and all claims of a paper share Holm's correction.
"""
from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

from trainwright.compare import coordinate, suite, tuning, verdicts
from trainwright.compare import spec as specs
from trainwright.compare.arms import ArmRecipes
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Watch, write
from trainwright.compare.spec import Arm, Spec
from trainwright.compare.verdicts import Verdict
from trainwright.core import hardware
from trainwright.core.errors import UserError, suggest
from trainwright.core.settings import make
from trainwright.papers import evidence, library
from trainwright.papers.evidence import Told
from trainwright.papers.paper import Claim, Paper
from trainwright.storage.store import Store
from trainwright.storage.versions import describe, versions

SEEDS = 5
"""Pairs that a program measures; a suite has its own number."""
USUAL = 900.0
"""Seconds that the comparison of a claim may take on two cores; what is assumed of one that was not timed."""
NONE = "none"
"""In ``set`` of an arm: takes the setting away."""


class Measured(NamedTuple):
    """The numbers of one claim."""

    differences: Sequence[float]
    """Arm less baseline, one a seed."""
    baseline: Sequence[float]
    better: str
    also: list[dict[str, Any]]
    """The other metrics, so that no price is hidden."""
    runs: int
    seconds: float
    trials: int


# ---- arms ------------------------------------------------------------------------------------------------


def arm_of(name: str, given: Any, where: str) -> Arm:
    """An arm as a comparison takes it: a list of methods to add, or a table of its keys.

    Raises:
        UserError: neither, or an unknown key.
    """
    if isinstance(given, (list, tuple)):
        given = {"add": list(given)}
    if not isinstance(given, dict):
        raise UserError(f"{where}: the arm {name!r} is a list of methods, or a table as of an [[arm]].")
    changes = {key: None if value == NONE else value for key, value in given.get("set", {}).items()}
    arm: Arm = make(Arm, given | {"name": name} | ({"set": changes} if changes else {}), where)
    return arm


def spec_of(paper: Paper, claim: Claim, *more: Claim) -> Spec:
    """The comparison that tests a claim, and others of the same arms.

    Raises:
        UserError: a suite that is not there, or arms that are none.
    """
    where = f"{paper.id}.toml: {claim.says!r}"
    if claim.suite and claim.suite not in suite.names():
        raise UserError(f"{where}: there is no suite {claim.suite!r}{suggest(claim.suite, suite.names())}.")
    verdicts.expects(claim.expects, where)
    file = suite.find(claim.suite) if claim.suite else library.RECIPES / claim.recipe
    arms = [arm_of(name, claim.arms[name], where) for name in (claim.baseline, claim.arm)]
    also = {c.metric: c.better for c in (claim, *more) if c.metric and c.better}
    return specs.load(file, {"baseline": claim.baseline, "also": also}, arms, own=False)


# ---- measuring -------------------------------------------------------------------------------------------


def reproduce(paper: Paper, claims: Iterable[Claim], store: Store, folder: Path, watch: Watch,
              jobs: int = 1) -> list[Told]:
    """Measure these claims, and write ``folder/ID.json``, which keeps what it had of other claims.

    Raises:
        UserError: an arm that fails, or a metric that the suite does not measure.
    """
    entries = evidence.read(paper, folder)
    for group in together(claims):
        found = _run(paper, group, store, watch, jobs)
        for claim, measured in zip(group, found, strict=True):
            entries[claim.says] = entry(paper, claim, measured)
        save(paper, entries, folder)
    return evidence.told(paper, folder)


def together(claims: Iterable[Claim]) -> list[list[Claim]]:
    """Claims that the same runs answer, side by side; those that are not tested are left out."""
    groups: dict[tuple[str, ...], list[Claim]] = {}
    for claim in claims:
        if not claim.not_tested:
            groups.setdefault((claim.place, claim.arm, claim.baseline), []).append(claim)
    return list(groups.values())


def _run(paper: Paper, group: list[Claim], store: Store, watch: Watch, jobs: int) -> list[Measured]:
    if group[0].script:
        return [_program(paper, claim, store) for claim in group]
    comparison = Comparison(spec_of(paper, *group), store, watch, jobs)
    result = comparison.run()
    rows = [r for r in result["comparisons"] if r["arm"] == group[0].arm]
    return [_row(paper, claim, comparison.spec, result, rows) for claim in group]


def _row(paper: Paper, claim: Claim, spec: Spec, result: dict[str, Any],
         rows: list[dict[str, Any]]) -> Measured:
    """The numbers of a claim's metric, from the rows of its arm."""
    failed = next((r for r in rows if r["verdict"] == "failed"), None)
    if failed is not None:
        raise UserError(f"{paper.id}: {claim.arm} failed in the suite {claim.place}: {failed['reason']}")
    metric = claim.metric or spec.settings.metric
    row = next((r for r in rows if r["metric"] == metric), None)
    if row is None:
        known = [r["metric"] for r in rows]
        raise UserError(f"{paper.id}: the suite {claim.place} does not measure {metric!r}"
                        f"{suggest(metric, known)}.")
    also = [{k: r[k] for k in ("metric", "difference", "low", "high", "verdict")} for r in rows
            if r is not row]
    trials = result["tuning"]["trials"] if result["tuning"] else 0
    return Measured(row["values"], row["baseline_values"], claim.better or row["better"], also,
                    2 * (len(result["seeds"]) + trials), result["seconds"], trials)


def _program(paper: Paper, claim: Claim, store: Store) -> Measured:
    """The numbers that a program prints: it is given the paper's id and writes pairs of numbers."""
    root = library.RECIPES.parent
    if not (root / claim.script).is_file():
        raise UserError(f"{paper.id}: {claim.script} is part of a checkout of Trainwright, not of an "
                        "installed package.")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "pairs.json"
        done = subprocess.run([sys.executable, claim.script, paper.id, "--seeds", str(SEEDS), "--store",
                               str(store.folder("programs").resolve()), "--out", str(out)], cwd=root,
                              check=False, stderr=subprocess.PIPE, text=True)
        if done.returncode or not out.is_file():
            last = (done.stderr.strip().splitlines() or ["no reason was given"])[-1]
            raise UserError(f"{paper.id}: {claim.script} ended with {done.returncode}: {last}")
        told = json.loads(out.read_text(encoding="utf-8"))
    differences = [x - y for x, y in zip(told["arm"], told["baseline"], strict=True)]
    return Measured(differences, told["baseline"], claim.better or "lower", [], 2 * len(differences),
                    told["seconds"], 0)


# ---- evidence --------------------------------------------------------------------------------------------


def entry(paper: Paper, claim: Claim, found: Measured) -> dict[str, Any]:
    """What is kept of a measurement; ``save`` puts the verdict beside it."""
    number = 1 + [c.says for c in paper.claims].index(claim.says)
    return {**_stated(claim), "better": found.better, "differences": list(found.differences),
            "baseline_values": list(found.baseline), "also": found.also, "code": evidence.code_of(claim),
            "carried": False, "note": "", "runs": found.runs, "seconds": found.seconds,
            "tuning_trials": found.trials, "command": f"trainwright reproduce {paper.id} --claim {number}",
            "date": date.today().isoformat(), "hardware": describe(), "precision": hardware.best_precision(),
            "versions": versions()}


def _stated(claim: Claim) -> dict[str, Any]:
    return {"says": claim.says, "compares": claim.compares, "place": claim.place, "metric": claim.metric}


def save(paper: Paper, entries: dict[str, dict[str, Any]], folder: Path) -> None:
    """Write the evidence of a paper, each entry with the verdict that follows from all of them."""
    kept = [(claim, entries[claim.says]) for claim in paper.claims if claim.says in entries]
    judged = iter(verdicts.together([_judged(paper, claim, e) for claim, e in kept if _numbers(e)]))
    out = [e | {"verdict": next(judged).table() if _numbers(e) else None} for _, e in kept]
    write(folder / f"{paper.id}.json", {"paper": paper.id, "title": paper.title, "arxiv": paper.arxiv,
                                        "methods": library.methods(paper), "claims": out})


def _numbers(e: dict[str, Any]) -> bool:
    return e["carried"] or len(e["differences"]) > 1


def _judged(paper: Paper, claim: Claim, e: dict[str, Any]) -> Verdict:
    where = f"{paper.id}.toml: {claim.says!r}"
    if e["carried"]:                                       # its seeds' numbers were not kept
        return verdicts.read(e["verdict"], where)
    claimed = verdicts.expects(claim.expects, where)
    return verdicts.judge(claimed, e["differences"], e["baseline_values"], e["better"])


# ---- all of them -----------------------------------------------------------------------------------------


def due(papers: Iterable[Paper], folder: Path) -> list[tuple[Paper, list[Claim]]]:
    """Claims without a measurement of today's code; with all of them done there is nothing to do."""
    found = []
    for paper in papers:
        open_ = [t.claim for t in evidence.told(paper, folder)
                 if not t.claim.not_tested and (t.verdict is None or evidence.old(t))]
        if open_:
            found.append((paper, open_))
    return found


class Price(NamedTuple):
    """What a comparison is expected to take."""

    seconds: float
    timed: bool
    """From runs that were timed; else ``USUAL`` is assumed."""


def price(paper: Paper, group: Sequence[Claim], folder: Path, jobs: int = 1) -> Price:
    """What claims that share their runs will take: what they took last time, where their suite is still the
    same, or as many runs as they need of what a run of the suite takes; runs are made ``jobs`` at a time."""
    claim = group[0]
    last = evidence.read(paper, folder).get(claim.says)
    if claim.script:
        known = last.get("seconds") if last else None
        return Price(USUAL, False) if known is None else Price(known, True)
    spec = spec_of(paper, claim)
    each = suite.seconds_of_a_run(claim.suite, folder) if claim.suite else None
    if each is None and last and last.get("seconds") and last.get("differences") and _same(claim, last):
        each = last["seconds"] / (2 * len(last["differences"]))
    if each is None:
        return Price(USUAL, False)
    tried = coordinate.first if spec.settings.search == "coordinate" else tuning.candidates
    trials = sum(len(tried(spec, ArmRecipes(spec), arm)) for arm in spec.arms) * spec.settings.tune_seeds
    return Price(each * (2 * spec.settings.seeds + trials) / jobs, True)


def _same(claim: Claim, entry: dict[str, Any]) -> bool:
    """Whether a measurement was made in the suite, or by the recipe, of today."""
    place = f"{'suite' if claim.suite else 'recipe'} {claim.place}"
    return bool(entry.get("code", {}).get(place) == evidence.code_of(claim).get(place))


def cheapest_first(todo: Iterable[tuple[Paper, list[Claim]]], folder: Path,
                   jobs: int = 1) -> list[tuple[Price, Paper, list[Claim]]]:
    """Comparisons in the order in which they are made: those of a suite one after another, as they share
    runs, and of suites and comparisons the cheapest first; what was never timed comes last."""
    listed = [(price(paper, group, folder, jobs), paper, group)
              for paper, claims in todo for group in together(claims)]
    total: dict[str, tuple[bool, float]] = {}
    for cost, _, group in listed:
        untimed, seconds = total.get(group[0].place, (False, 0.0))
        total[group[0].place] = (untimed or not cost.timed, seconds + cost.seconds)
    return sorted(listed, key=lambda one: (*total[one[2][0].place], one[2][0].place, one[0].seconds))
