"""A method against its baseline in a shared suite: what the paper claims beside what was measured.

A method names its suite, its baseline and its claim (``Method.bench``); data, budget, seeds and metrics are
the suite's.
"""
from __future__ import annotations

import os
import re
from datetime import date
from pathlib import Path
from typing import Any

from trainwright.compare import spec as specs
from trainwright.compare.compare import Comparison
from trainwright.compare.execute import Watch, write
from trainwright.compare.result import COSTS
from trainwright.compare.spec import Arm, Spec
from trainwright.core import registry
from trainwright.core.bench import Bench
from trainwright.core.errors import UserError, suggest
from trainwright.core.recipe import read
from trainwright.storage.store import Store
from trainwright.storage.versions import versions

SUITES = Path(__file__).parent / "suites"
EVIDENCE = ("reproduced", "no difference", "contradicted", "needs scale")


def suites() -> dict[str, Path]:
    """The shared suites by name."""
    return {f.stem: f for f in sorted(SUITES.glob("*.toml"))}


def claimed() -> dict[str, Bench]:
    """Every installed method whose paper's claim is put to a test."""
    found = {name: registry.find(name).bench for name in registry.cards()}
    return {name: bench for name, bench in found.items() if bench is not None}


def spec_of(method: str, bench: Bench) -> Spec:
    """The comparison of a method with its baseline.

    Raises:
        UserError: an unknown suite.
    """
    if bench.suite not in suites():
        raise UserError(f"{method}: there is no suite {bench.suite!r}{suggest(bench.suite, suites())}.")
    file = suites()[bench.suite]
    name = bench.versus or read(file)[0]["compare"]["baseline"]
    arms = [Arm(name=name, add=bench.baseline, drop=bench.baseline_drop, set=bench.baseline_set or {},
                stage=bench.stages),
            Arm(name=method, add=bench.add or ({"use": method},), drop=bench.drop, at=bench.at or None,
                set=bench.set or {}, stage=bench.stages, search=bench.search)]
    return specs.load(file, {"baseline": name}, arms)


def at_a_time() -> int:
    """Runs of a suite to make at a time: their models are too small to keep two cores busy."""
    import torch
    return 1 if torch.cuda.is_available() else os.cpu_count() or 1


def run(method: str, store: Store, folder: Path, watch: Watch, jobs: int = 1) -> dict[str, Any]:
    """Compare, and write ``folder/METHOD.json``; returns the evidence.

    Raises:
        UserError: a method without a claim, or whose arm fails.
    """
    bench = claimed().get(method)
    if bench is None:
        raise UserError(f"{method} states no claim of a paper that could be tested "
                        f"(bench){suggest(method, claimed())}.")
    spec = spec_of(method, bench)
    result = Comparison(spec, store, watch, jobs).run()
    metric = bench.metric or spec.settings.metric
    row = next((r for r in result["comparisons"] if r["arm"] == method and r["metric"] == metric), None)
    if row is None or row["verdict"] == "failed":
        failed = next((r for r in result["comparisons"] if r["verdict"] == "failed"), None)
        if failed is None:
            raise UserError(f"{method}: the suite {bench.suite} does not measure {metric}.")
        raise UserError(f"{method}: failed in the suite {bench.suite}: {failed['reason']}")
    found = evidence(method, bench, result, row, spec.settings.metric)
    write(folder / f"{method}.json", found)
    return found


def evidence(method: str, bench: Bench, result: dict[str, Any], row: dict[str, Any],
             decides: str) -> dict[str, Any]:
    """The measured effect beside the claim. ``also`` holds the other metrics, so that it hides no price.

    Args:
        decides: the suite's own metric.
    """
    others = [{k: r[k] for k in ("metric", "difference", "low", "high", "verdict")}
              for r in result["comparisons"] if r is not row and r["arm"] == method]
    quality = next((r for r in others if r["metric"] == decides), None)
    paid = bool(quality and quality["verdict"] == "worse" and row["metric"] in COSTS)
    price = f"{decides} is worse by {abs(quality['difference']):.3g}" if quality and paid else ""
    verdict = judged(row["verdict"], bench, paid)
    reason = "; ".join(w for w in (price, "" if verdict == "reproduced" else bench.scale) if w)
    effect = ("metric", "better", "difference", "low", "high", "baseline_mean", "detectable")
    return {"method": method, "paper": bench.paper or paper(registry.cards()[method].doc),
            "claim": bench.claim, "suite": bench.suite, "baseline": result["baseline"],
            **{k: row[k] for k in effect}, "seeds": len(result["seeds"]),
            "tuning_trials": result["tuning"]["trials"] if result["tuning"] else 0, "verdict": verdict,
            "reason": reason, "also": others, "command": f"trainwright bench {method}",
            "date": date.today().isoformat(), "hardware": result["hardware"], "versions": versions()}


def judged(verdict: str, bench: Bench, paid: bool = False) -> str:
    """The comparison's verdict as one on the claim, which is always that the method is better; a saving that
    is ``paid`` for with quality is none."""
    if verdict == "better" and not paid:
        return "reproduced"
    return "needs scale" if bench.scale else "contradicted" if verdict == "worse" or paid else "no difference"


def paper(doc: str) -> str:
    """The first paper that a docstring names: ``Title (arXiv 1234.56789)``."""
    found = re.search(r'"([^"]+)"[^"()]*\((?:[^()]*,\s)?(arXiv:?\s?\d{4}\.\d{4,5})', doc, re.DOTALL)
    return " ".join(f"{found[1]} ({found[2]})".split()) if found else ""
