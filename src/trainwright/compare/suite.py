"""What is known of a shared suite itself: how its baseline was tuned, what registered tricks gain on it, and
how far it lies from itself.

    tuning    the search of ``suites/tuning/NAME.toml``, every trial of it
    tricks    the arms of that file against the tuned baseline
    aa        the baseline against itself, ten seeds a side: its noise, and how often a test would be wrong

Each is a part of ``evidence/suites/NAME.json``, with the hash of the suite that it was measured in: a part of
another suite than today's is old and counts for nothing.
"""
from __future__ import annotations

import hashlib
import json
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

from trainwright.compare import coordinate, tuning
from trainwright.compare import spec as specs
from trainwright.compare.arms import Length
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Watch, write
from trainwright.compare.spec import Arm, Spec
from trainwright.core import recipe as recipes
from trainwright.core.errors import UserError, suggest
from trainwright.papers import evidence, library
from trainwright.storage.store import Store
from trainwright.storage.versions import describe, versions

PARTS = ("tuning", "tricks", "aa")
SEEDS = 10
"""Seeds of each side of an A/A comparison."""
OWN = "compare."
FREE: dict[str, Any] = {"tune": {}, "search": "all", "trials": None}
"""Nothing is tuned: the baseline has what its search chose."""


# ---- what is compared ------------------------------------------------------------------------------------


def names() -> dict[str, Path]:
    """The shared suites by name."""
    return {f.stem: f for f in sorted(evidence.SUITES.glob("*.toml"))}


def find(name: str) -> Path:
    """The file of a suite.

    Raises:
        UserError: there is none of that name.
    """
    if name not in names():
        raise UserError(f"there is no suite {name!r}{suggest(name, names())}.")
    return names()[name]


def search_of(name: str) -> Path:
    """The file that tunes a suite's baseline.

    Raises:
        UserError: the suite has none.
    """
    file = find(name).parent / "tuning" / f"{name}.toml"
    if not file.is_file():
        known = sorted(f.stem for f in file.parent.glob("*.toml"))
        raise UserError(f"the suite {name} has no search: tuning/{name}.toml is not there, as it is for "
                        f"{', '.join(known) or 'none'}.")
    return file


def spec_of(name: str, part: str, changes: dict[str, Any] | None = None) -> Spec:
    """The comparison that measures a part.

    Args:
        changes: settings of the recipe, as with ``--set``; ``compare.KEY`` is one of the comparison.

    Raises:
        UserError: no such suite, or one without a search.
    """
    of_compare: dict[str, Any] = {}
    of_recipe: dict[str, Any] = {}
    for key, value in (changes or {}).items():
        (of_compare if key.startswith(OWN) else of_recipe)[key.removeprefix(OWN)] = value
    if part == "aa":
        return specs.load(find(name), {"seeds": SEEDS, **FREE, **of_compare}, (), of_recipe, True)
    if part == "tuning":
        return specs.load(search_of(name), of_compare, (), of_recipe, True)
    own = recipes.read(find(name))[0]["compare"]                  # each side searches as arms of claims do
    effort = {"tune_seeds": 1} | {key: own[key] for key in ("tune", "search", "trials") if key in own}
    return specs.load(search_of(name), effort | of_compare, (), of_recipe)


# ---- measuring -------------------------------------------------------------------------------------------


def measure(name: str, part: str, store: Store, folder: Path, watch: Watch, jobs: int = 1,
            changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """Measure a part, write ``folder/suites/NAME.json`` and return the part.

    Raises:
        UserError: what a comparison raises; a search of which every trial failed.
    """
    began = time.perf_counter()
    comparison = Comparison(spec_of(name, part, changes), store, watch, jobs)
    made = {"tuning": _tuned, "tricks": _tricks, "aa": _noise}[part](comparison)
    made |= {"code": code(name, part), "seconds": round(time.perf_counter() - began, 1), "jobs": jobs,
             "command": f"trainwright suite {name} --{'tune' if part == 'tuning' else part}",
             "date": date.today().isoformat(), "hardware": describe(), "versions": versions()}
    whole = read(name, folder) | {"suite": name, "title": comparison.spec.title, part: made}
    write(folder / "suites" / f"{name}.json", whole)
    return made


class _Search(Comparison):
    """The search of one arm alone: no run that counts, and nobody asks what a step costs."""

    def trials_of(self, arm: Arm) -> list[dict[str, Any]]:
        """Every trial with its values and what was measured at them."""
        self.check()
        self._prepare()
        self.lengths = {a.name: Length(self.limit(None), self._steps(a, None), compiled=False)
                        for a in self.spec.arms}
        self.watch.phase("tuning", len(self.candidates[arm.name]) * self.spec.settings.tune_seeds)
        self._choose(arm.name, coordinate.tune(self, arm))
        return self.trials[arm.name]


def _tuned(c: Comparison) -> dict[str, Any]:
    trials = _Search(c.spec, c.store, c.watch, c.jobs).trials_of(c.spec.arms[0])
    best = tuning.choose(trials, c.spec)
    if best is None:
        raise UserError(f"{c.spec.file}: all {len(trials)} trials failed: {trials[0]['failed']}")
    s = c.spec.settings
    return {"metric": s.metric, "better": c.spec.better, "budget": s.budget, "tune_seeds": s.tune_seeds,
            "space": s.tune, "trials": trials, "chosen": best["values"], "best": best["metric"],
            "at_edge": tuning.edges([t["values"] for t in trials], best["values"])}


def _tricks(c: Comparison) -> dict[str, Any]:
    result = c.run()
    metric = c.spec.settings.metric
    kept = ("arm", "metric", "values", "difference", "low", "high", "p_holm", "verdict", "better")
    uses = {a.name: sorted({str(m["use"]) for m in a.add}) for a in c.spec.arms}
    return {"metric": metric, "baseline": c.spec.baseline,
            "arms": [{k: row[k] for k in kept} | {"uses": uses[row["arm"]]} for row in result["comparisons"]
                     if row["metric"] == metric and row["verdict"] != "failed"],
            "failed": dict(c.failed), "caveats": result["caveats"]}


def _noise(c: Comparison) -> dict[str, Any]:
    result = c.run()
    runs = [r for arm in result["arms"] for r in arm["runs"]]
    found = {}
    for row in result["comparisons"]:
        values = [r["metrics"][row["metric"]] for r in runs if row["metric"] in r["metrics"]]
        if row["verdict"] == "failed" or row["exact"] or row["metric"] == "seconds_per_step":
            continue
        wrong = (result["wrong"] or {}).get(row["metric"], {})
        found[row["metric"]] = {"mean": statistics.mean(values), "sd": statistics.stdev(values),
                                "values": values, "wrong": wrong.get("share"), "deals": wrong.get("deals"),
                                "seeds": wrong.get("seeds"), "verdict": row["verdict"]}
    took = [r["figures"].get("wall_seconds") or 0.0 for listed in c.counted.values() for r in listed]
    return {"arm": c.spec.baseline, "runs": len(runs), "metrics": found,
            "run_seconds": statistics.median(took)}              # one that was held up says nothing of others


# ---- what was measured -----------------------------------------------------------------------------------


def code(name: str, part: str) -> dict[str, str]:
    """Hashes of the files that a part rests on."""
    files = {f"suite {name}": find(name)}
    if part != "aa":
        files[f"search {name}"] = search_of(name)
    return {k: hashlib.sha256(f.read_bytes()).hexdigest()[:16] for k, f in files.items()}


def read(name: str, folder: Path | None = None) -> dict[str, Any]:
    """What the file of a suite holds; empty where there is none."""
    file = (folder or evidence.folder()) / "suites" / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def part_of(name: str, part: str, folder: Path | None = None) -> dict[str, Any] | None:
    """A part, where it was measured in the suite of today."""
    found = read(name, folder).get(part)
    return found if found is not None and found["code"] == code(name, part) else None


def gains(name: str, folder: Path | None = None) -> dict[str, tuple[float, list[str]]]:
    """Of each trick what it gains at least: the end of its interval that is nearer to zero, and the methods
    that it uses. One whose interval holds zero gains nothing."""
    found = part_of(name, "tricks", folder)
    out = {}
    for row in found["arms"] if found else ():
        near = -row["high"] if row["better"] == "lower" else row["low"]
        out[row["arm"]] = (max(0.0, near), list(row["uses"]))
    return out


def in_doubt(effect: float, better: str, uses: set[str], name: str, folder: Path | None = None) -> list[str]:
    """The tricks that gain more than an effect which the suite showed, unless they are what was tested.

    Args:
        effect: arm less baseline, in the metric that decides in the suite.
        uses: the methods of the claim's arms.
    """
    gain = -effect if better == "lower" else effect
    if gain <= 0:
        return []
    return [trick for trick, (least, methods) in gains(name, folder).items()
            if least > gain and not uses & set(methods)]


def seconds_of_a_run(name: str, folder: Path | None = None) -> float | None:
    """What a run of a suite took: of its A/A comparison, else of claims that were measured in the suite of
    today; None where neither is there."""
    found = part_of(name, "aa", folder)
    if found is not None:
        return float(found["run_seconds"])
    today = code(name, "aa")[f"suite {name}"]
    each = [e["seconds"] / (2 * len(e["differences"])) for paper in library.papers().values()
            for e in evidence.read(paper, folder).values()
            if e.get("code", {}).get(f"suite {name}") == today and e["differences"]]
    return statistics.median(each) if each else None
