"""What has to be said beside a verdict: an arm that was not tuned, or not as its baseline was, and so on."""
from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainwright.compare import tuning
from trainwright.core import registry

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison

FEW = 5
"""With fewer seeds that is said."""


def of_arms(c: Comparison, seeds: dict[str, int]) -> dict[str, list[str]]:
    """Every arm's caveats, those of the baseline among them, as the verdict rests on both.

    Args:
        seeds: runs that each arm is compared with.
    """
    base = c.spec.baseline
    out = {}
    for arm in (a.name for a in c.spec.arms if a.name != base and a.name not in c.failed):
        tuned = c.given or any(c.trials.values())
        said = ["untuned: settings as written"] if c.trains and not tuned else []
        for name, who in ((arm, ""), (base, f"{base} ")):
            said += [f"{who}tuned to the edge of what was tried: {key} {value}"
                     for key, value in at_edge(c, name).items()]
        said += _rates(c, arm)
        if seeds.get(arm, 0) < FEW:
            said.append(f"{seeds.get(arm, 0)} seeds, fewer than five")
        out[arm] = said
    return out


def at_edge(c: Comparison, arm: str) -> dict[str, str]:
    """Tuned settings of an arm whose best value is the least or the greatest tried."""
    trials, chosen = c.trials.get(arm, []), c.chosen.get(arm, {})
    return {key: f"{chosen[key]:g}" for key in tuning.edges([t["values"] for t in trials], chosen)}


def rates(methods: list[dict[str, Any]], root: Path = Path()) -> list[str]:
    """The learning rates of a stage, one for each of its optimizers: ``adamw.lr``."""
    return [f"{registry.called(m['use'])}.{name}" for m in methods
            if (card := registry.card_of(str(m.get("use")), root)) is not None and card.is_a("Optimizer")
            for name in (f[0] for f in card.settings) if name == "lr" or name.endswith("_lr")]


def _rates(c: Comparison, arm: str) -> list[str]:
    """That one of the two sides searched all of its learning rates and the other only some."""
    if not any(c.trials.values()):
        return []
    counts = {}
    for one in (a for a in c.spec.arms if a.name in (arm, c.spec.baseline)):
        every = rates(c.recipes.stages(one, {})[c.recipes.stage].get("methods", []), c.spec.life.parent)
        searched = set(every) & {key for t in c.trials.get(one.name, []) for key in t["values"]}
        counts[one.name] = (len(searched), len(every))
    mine, theirs = counts[arm], counts[c.spec.baseline]
    if mine[0] * theirs[1] == theirs[0] * mine[1]:
        return []
    return [f"rates searched unequally: {mine[0]} of {mine[1]} here, {theirs[0]} of {theirs[1]} of "
            f"{c.spec.baseline}"]


def warnings(c: Comparison) -> list[str]:
    """What is wrong with the comparison as a whole."""
    out = []
    for name, trials in c.trials.items():
        out += [f"{name}: the best {key} ({value}) lies at the edge of what was tried; search further there."
                for key, value in at_edge(c, name).items()]
        bad = sum(t["metric"] is None and not t["pruned"] for t in trials)
        if bad:
            out.append(f"{name}: {bad} of {len(trials)} tuning trials failed.")
    if c.spec.currency == "seconds":
        out.append("Seconds were turned into steps once, from the measured seconds of a step; they are "
                   "those of this machine.")
    return out
