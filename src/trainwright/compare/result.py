"""What a comparison found: ``result.json``, from which the table and the page are made."""
from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from trainwright.compare import aa, caveats, deciding, rows, tuning
from trainwright.compare.costs import Costs
from trainwright.compare.execute import Record
from trainwright.compare.spec import Spec
from trainwright.life.run import command
from trainwright.storage.versions import describe, git_commit, versions

if TYPE_CHECKING:
    from trainwright.compare.compare import Comparison

LEDGER = ("steps", "tokens", "trained_tokens", "seconds", "state_bytes", "stored_bytes", "parameters",
          "trainable_parameters")

COUNTED = ("trainable_parameters", "state_bytes")
SAID = {
    "pairing": "A seed gives all arms the same order of the data and the same starting weights; differences "
               "are taken seed by seed, the arm less the baseline.",
    "interval": "Intervals are 95 % paired t intervals of the mean difference, each for its arm alone. With "
                "so few seeds a bootstrap would be too narrow.",
    "verdict": "A verdict needs p < 0.05 after Holm's correction over the arms; without that it is no "
               "difference at this budget.",
    "detectable": "Detectable is the smallest true difference that so many seeds, with the spread they "
                  "showed, would find four times out of five.",
    "seconds": "Seconds of a step were measured with the arm and the baseline taking turns; differences are "
               "paired by turn.",
    "memory": "Peak memory is what the tensors of a step take at most: weights, gradients, states of the "
              "optimizer and all that is kept for the backward pass, counted, not sampled.",
    "stored": "Stored is what a run adds to the model that all arms begin with: the file of its adapter "
              "where it wrote one, else its weights.",
    "aa": "Both sides are the same arm with different seeds: what differs is noise. Wrong verdicts are "
          "counted over random ways to deal all runs to two sides.",
}
"""How it was done, in sentences for ``result.json`` and the page."""
LOOKED = {
    "interval": "Seeds were added until every verdict was decided. Intervals are 95 % confidence sequences "
                "of the mean difference, each for its arm alone: they hold whenever one looks, which t "
                "intervals do not, and are wider (arXiv 2310.03722).",
    "verdict": "A verdict needs p < 0.05 at any time, after Holm's correction over the arms; an arm without "
               "one is not decided.",
}
"""Those that differ where seeds were added until all was decided."""


def assemble(c: Comparison, records: dict[str, list[Record]], start: dict[str, float]) -> dict[str, Any]:
    """The whole result; the keys are described in ``docs/compare.md``."""
    spec, s = c.spec, c.spec.settings
    runs = {arm: [_run(r, start, c) for r in listed] for arm, listed in records.items()}
    compared = rows.comparisons(c, runs)
    arms = [_arm(c, a.name, records.get(a.name, []), runs.get(a.name, [])) for a in spec.arms]
    seen = {name: len(listed) for name, listed in runs.items()}
    seconds = sum(r["figures"].get("wall_seconds") or 0 for of_arm in records.values() for r in of_arm)
    return {"title": spec.title, "recipe": spec.file.name, "stage": s.stage, "metric": s.metric,
            "baseline": spec.baseline, "aa": spec.aa, "seeds": list(range(seen[spec.baseline])),
            "budget": {"currency": spec.currency, "amount": spec.amount},
            "new": list(c.recipes.domains("new")), "old": list(c.recipes.domains("old")),
            "tuning": _tuning(c),
            "arms": arms, "wrong": aa.told(arms, compared) if spec.aa else None,
            "comparisons": compared, "noise": rows.noise(c, runs, compared),
            "race": deciding.summary(spec, records, c.failed), "caveats": caveats.of_arms(c, seen),
            "warnings": caveats.warnings(c),
            "said": _sentences(c), "command": command(), "seconds": seconds,
            "date": datetime.now(UTC).isoformat(timespec="seconds"), "hardware": describe(),
            "versions": versions(), "git": git_commit(spec.life.parent), "seed": spec.seed}


def _run(record: Record, start: dict[str, float], c: Comparison) -> dict[str, Any]:
    """One run's numbers: what was measured, what was gained and forgotten, what it cost."""
    numbers = dict(record["numbers"])
    for role, word, sign in (("new", "gain", 1), ("old", "forgetting", -1)):
        for domain in c.recipes.domains(role):
            loss = f"loss/{domain}"
            if loss in start and loss in numbers:
                numbers[f"{word}/{domain}"] = sign * (start[loss] - numbers[loss])
    cost = c.costs.get(record["arm"])
    figures = record["figures"]
    if cost is not None and figures:
        numbers |= {"seconds_per_step": cost.seconds, "peak_memory_bytes": cost.peak_memory_bytes}
    numbers |= {n: figures[n] for n in COUNTED if figures.get(n) is not None}
    if figures and figures.get("stored_bytes") is not None:
        numbers["stored_bytes"] = kept_bytes(figures)
    return {"metrics": numbers} | {k: record[k] for k in ("seed", "hashes", "failed")}


def kept_bytes(figures: dict[str, Any]) -> float | None:
    """Bytes of what a run adds to the model that it began with: its adapter where it wrote one, else its
    weights."""
    return figures.get("delta_bytes") or figures.get("stored_bytes")


def _arm(c: Comparison, name: str, records: list[Record], runs: list[dict[str, Any]]) -> dict[str, Any]:
    arm = next(a for a in c.spec.arms if a.name == name)
    whole = [r["figures"] for r in records if r["figures"]]
    ledger: dict[str, float | None] = {k: _mean([f.get(k) for f in whole]) for k in LEDGER}
    ledger["stored_bytes"] = _mean([kept_bytes(f) for f in whole])
    cost = c.costs.get(name)
    if cost is not None:
        steps = ledger["steps"] or 0
        ledger |= {"flops": cost.flops * steps, "seconds_per_step": cost.seconds,
                   "peak_memory_bytes": cost.peak_memory_bytes}
    trials = c.trials.get(name, [])
    chosen = c.chosen.get(name, {})
    stages = c.recipes.stages(arm, chosen)
    return {"name": name, "stage": stages[c.recipes.stage], "changes": _changes(arm),
            "failed": c.failed.get(name), "parameters": ledger["parameters"],
            "trainable": ledger["trainable_parameters"], "trials": trials, "chosen": chosen,
            "at_edge": tuning.edges([t["values"] for t in trials], chosen), "ledger": ledger, "runs": runs,
            "curve": _curve(records, cost, c.spec),
            "selected": next((r["selected"] for r in records if r.get("selected")), {})}


def _changes(arm: Any) -> str:
    """What an arm does differently, in a line."""
    def words(m: dict[str, Any]) -> str:
        settings = ", ".join(f"{k} = {v}" for k, v in m.items() if k != "use")
        return str(m["use"]) + (f" ({settings})" if settings else "")
    parts = [f"with {words(m)}" for m in arm.add] + [f"without {d}" for d in arm.drop]
    parts += [f"{k} = {v}" for k, v in arm.set.items()] + [f"stage {t['name']}" for t in arm.stage]
    return "; ".join(parts) or "the recipe as it is"


def _curve(records: list[Record], cost: Costs | None, spec: Spec) -> dict[str, Any] | None:
    """The metric on the way, one row for each seed, over tokens, FLOPs and seconds."""
    metric = spec.settings.metric
    curves = [r["curve"] for r in records if r["curve"] and metric in r["curve"]["values"]]
    if not curves or len({len(x["tokens"]) for x in curves}) > 1:
        return None
    if cost:
        flops, seconds = ([s * each for s in curves[0]["step"]] for each in (cost.flops, cost.seconds))
    else:
        flops = curves[0]["flops"]
        seconds = [statistics.mean(x) for x in zip(*(one["seconds"] for one in curves), strict=True)]
    return {"name": metric, "split": "tune", "tokens": curves[0]["tokens"], "flops": flops,
            "seconds": seconds, "values": [one["values"][metric] for one in curves]}


def _tuning(c: Comparison) -> dict[str, Any] | None:
    if not any(c.trials.values()):
        return None
    s = c.spec.settings
    seeds = [tuning.FIRST_SEED + i for i in range(s.tune_seeds)]
    return {"trials": max(len(t) for t in c.trials.values()), "seeds": seeds, "split": "tune",
            "metric": s.metric, "early_stop": c.early_stop}


def _sentences(c: Comparison) -> dict[str, str]:
    """How it was done, in sentences."""
    s = c.spec.settings
    words = {k: v for k, v in SAID.items() if k != "aa" or c.spec.aa}
    if c.spec.aa:
        words.pop("pairing")
    if s.until_decided:
        words |= LOOKED
        words.pop("detectable")
        if s.margin is not None:
            words["verdict"] += (f" No difference means that any is shown to be below {s.margin:g}; as that "
                                 "can be wrong too, the correction is Bonferroni's.")
    words["budget"] = ("All arms go as far as the recipe says." if c.spec.amount is None else
                       f"Every run of every arm has the same budget of {c.spec.amount:g} {c.spec.currency}.")
    words["tuning"] = "Nothing was tuned: all arms ran with the settings as written."
    if c.trials:
        effort = "Each arm had the same number of tuning trials"
        if s.search == "coordinate":
            effort = ("Each arm was tuned one setting after another, each with the others at their best, "
                      "until none improved" + (f" or {s.trials} trials were made" if s.trials else ""))
        words["tuning"] = (f"{effort}, on seeds and on held-out documents that the final runs are not "
                           "measured with; what was best there was run with other seeds.")
    fixed = [n for n in c.recipes.shared() if n not in s.reseed]
    before = f"made once, for all runs: {', '.join(fixed)}" if fixed else "nothing came before it"
    words["conditional"] = f"The intervals cover the seeds of the compared stage only; {before}."
    return words


def _mean(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return statistics.mean(known) if known else None
