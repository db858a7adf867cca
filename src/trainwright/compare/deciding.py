"""Seeds one after another until every verdict is decided: ``compare --until-decided``.

After each seed ``sequential.decisions`` says which arms are decided; those stop, and the baseline goes on as
long as any other arm does. Earlier runs are found again, so an interrupted race goes on where it was.
"""
from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trainwright.compare.execute import Record
from trainwright.compare.sequential import FIRST, Decision, decisions
from trainwright.compare.spec import Spec

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison


def run(c: Comparison) -> dict[str, list[Record]]:
    """The runs of all arms until each is decided or has as many seeds as it may."""
    records: dict[str, list[Record]] = {a.name: [] for a in c.spec.arms}
    racing, seeds = c.alive(), 0
    while len(racing) > 1 and seeds < c.spec.most:
        more = FIRST if not seeds else max(1, c.jobs // len(racing))      # no process has nothing to do
        upto = min(c.spec.most, seeds + more)
        for name, found in c.final(racing, range(seeds, upto)).items():
            records[name] += found
        seeds = upto
        if c.spec.baseline in c.failed:
            break
        said = decided(c.spec, records, c.failed)
        going = {name for name, word in said.items() if word == "not decided"} | {c.spec.baseline}
        racing = [a for a in racing if a.name in going]
    return records


def decided(spec: Spec, records: Mapping[str, Sequence[Record]],
            failed: Mapping[str, str]) -> dict[str, Decision]:
    """What is decided on each arm that has not failed."""
    metric, base = spec.settings.metric, records[spec.baseline]
    differences = {}
    for name in (a.name for a in spec.arms if a.name != spec.baseline and a.name not in failed):
        both = [(x["numbers"].get(metric), y["numbers"].get(metric))
                for x, y in zip(records[name], base, strict=False)]    # a decided arm has fewer
        values = [x - y for x, y in both if x is not None and y is not None]
        if len(values) == len(both) and all(map(math.isfinite, values)):
            differences[name] = values
    return decisions(differences, spec.better, spec.settings.margin)


def summary(spec: Spec, records: Mapping[str, Sequence[Record]],
            failed: Mapping[str, str]) -> dict[str, Any] | None:
    """For ``result.json``: seeds of each arm, what is decided, runs, and those of a fixed number of seeds."""
    if not spec.settings.until_decided:
        return None
    runs = {name: len(found) for name, found in records.items()}
    return {"most": spec.most, "margin": spec.settings.margin, "seeds": runs, "runs": sum(runs.values()),
            "fixed_runs": spec.most * sum(n > 0 for n in runs.values()),
            "decided": {name: word != "not decided" for name, word in decided(spec, records, failed).items()}}
