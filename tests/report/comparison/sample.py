"""Comparisons written by hand, in the form of ``result.json``: full fine-tuning beside adapters."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.report.sample import VERSIONS
from trainwright.compare.statistics import holm, noise_floor, paired, verdict
from trainwright.report.comparison import export

SEEDS = 5
TOKENS = 200_000
METRICS = (
    "loss/code",
    "perplexity/code",
    "gain/code",
    "forgetting/prose",
    "seconds_per_step",
    "peak_memory_bytes",
    "trainable_parameters",
    "stored_bytes",
)
EXACT = ("peak_memory_bytes", "trainable_parameters", "stored_bytes")
PARAMETERS = 10_142_720
START = {"code": 4.05, "prose": 3.02}
"""Losses of the model that all arms start from."""
SAID = {
    "pairing": "Every arm ran with the same seeds: the same order of the data and the same starting weights "
               "for a seed.",
    "interval": "Intervals are those of the paired t test over seeds at 95 %, each of one difference, not "
                "corrected.",
    "verdict": "A verdict needs p < 0.05 after Holm's correction for the arms that are compared with the "
               "baseline.",
    "detectable": "Detectable is the smallest true difference that these seeds find with a power of 80 %.",
    "tuning": "Each arm had 3 trials with a seed of its own on the split tune; the measured split was never "
              "looked at.",
    "budget": "Every arm saw 200,000 tokens of training data; warm-up and evaluation are not counted.",
}


def arm(
    name: str,
    loss: float,
    forgetting: float,
    trainable: float,
    cost: tuple[float, float],
    lr: float,
    **more: Any,
) -> dict[str, Any]:
    """What an arm is like: its mean loss and forgetting, its share of trained parameters, its factors of
    time and memory."""
    return {
        "name": name,
        "loss": loss,
        "forgetting": forgetting,
        "share": trainable,
        "time": cost[0],
        "memory": cost[1],
        "lr": lr,
        "noise": 0.006,
    } | more


ARMS = (
    arm("full", 3.112, 0.214, 1.0, (1.0, 1.0), 1e-3, changes="as the recipe has it"),
    arm("lora", 3.146, 0.061, 0.0194, (1.08, 0.63), 3e-3, changes="adds lora(rank=8); adamw.lr is tuned"),
    arm(
        "dora",
        3.109,
        0.068,
        0.0201,
        (1.41, 0.66),
        3e-3,
        changes="adds peft(LoraConfig, r=8, use_dora=true); adamw.lr is tuned",
    ),
    arm(
        "ia3",
        3.392,
        0.022,
        0.0006,
        (0.91, 0.6),
        1e-2,
        edge=True,
        changes="adds peft(IA3Config); adamw.lr is tuned",
    ),
)
FAILED = "the loss is nan at step 41 with seed 2: every seed of an arm has to finish"


def run(one: dict[str, Any], seed: int, draw: np.random.Generator, shared: np.ndarray) -> dict[str, Any]:
    """One run; ``shared`` is what a seed does to all arms alike."""
    loss = one["loss"] + shared[seed] + draw.normal(0, one["noise"])
    metrics = {
        "loss/code": loss,
        "perplexity/code": math.exp(loss),
        "gain/code": START["code"] - loss,
        "forgetting/prose": one["forgetting"] + 0.5 * shared[seed] + draw.normal(0, 0.008),
        "seconds_per_step": 0.412 * one["time"] * math.exp(draw.normal(0, 0.015)),
        "peak_memory_bytes": 1.31e9 * one["memory"],
        "trainable_parameters": round(PARAMETERS * one["share"]),
        "stored_bytes": round(4 * PARAMETERS * one["share"]) + 1024,
    }
    key = f"{abs(hash_of(one['name'], seed)):012x}"[:12]
    return {"seed": seed, "metrics": metrics, "hashes": {"adapt": key, "judge": key[::-1]}, "failed": None}


def hash_of(name: str, seed: int) -> int:
    return sum(ord(c) * 7919 ** (i + 1) for i, c in enumerate(name + str(seed))) % 16**12


def curve(one: dict[str, Any], runs: list[dict[str, Any]], draw: np.random.Generator) -> dict[str, Any]:
    """The loss on the tuning split on the way, from the common start to about where each seed ended."""
    part = np.linspace(0, 1, 13)
    fall = np.exp(-5 * part) * 0.75 + (1 - part) * 0.25
    values = [
        r["metrics"]["loss/code"]
        + 0.01
        + (START["code"] - r["metrics"]["loss/code"]) * fall
        + draw.normal(0, 0.012, 13) * (part > 0)
        for r in runs
    ]
    tokens = part * TOKENS
    return {
        "name": "loss/code",
        "split": "tune",
        "tokens": list(tokens),
        "flops": list(tokens * 6.1e7 * (0.7 if one["share"] < 1 else 1)),
        "seconds": list(tokens / 2048 * 0.412 * one["time"]),
        "values": [list(v) for v in values],
    }


def trials(one: dict[str, Any]) -> list[dict[str, Any]]:
    grid = (3e-4, 1e-3, 3e-3, 1e-2)
    found = [
        {
            "values": {"adamw.lr": lr},
            "metric": one["loss"] + 0.02 + 0.09 * math.log10(lr / one["lr"]) ** 2 * 4,
            "failed": None,
            "pruned": False,
        }
        for lr in grid
    ]
    if one["name"] == "full":
        found[-1] |= {"metric": None, "failed": "the loss is nan at step 12"}
    if one["name"] == "ia3":
        found[0]["pruned"] = True
    return found


def written(one: dict[str, Any], runs: list[dict[str, Any]], draw: np.random.Generator) -> dict[str, Any]:
    """An arm of ``result.json``."""
    mean = {m: float(np.mean([r["metrics"][m] for r in runs])) for m in METRICS}
    steps = TOKENS // 2048
    ledger = {
        "steps": steps,
        "tokens": TOKENS,
        "flops": TOKENS * 6.1e7 * (0.7 if one["share"] < 1 else 1),
        "seconds": steps * mean["seconds_per_step"],
        "seconds_per_step": mean["seconds_per_step"],
        "peak_memory_bytes": mean["peak_memory_bytes"],
        "state_bytes": 8 * mean["trainable_parameters"],
        "stored_bytes": mean["stored_bytes"],
        "parameters": PARAMETERS,
        "trainable_parameters": mean["trainable_parameters"],
    }
    stage = {
        "kind": "train",
        "name": "adapt",
        "tokens": TOKENS,
        "batch_tokens": 2048,
        "precision": "fp32",
        "methods": [{"use": "next_token"}, {"use": "adamw", "lr": one["lr"], "weight_decay": 0.1}],
    }
    return {
        "name": one["name"],
        "stage": stage,
        "changes": one.get("changes", f"adds {one['name']}()"),
        "failed": None,
        "parameters": PARAMETERS,
        "trainable": round(PARAMETERS * one["share"]),
        "trials": trials(one),
        "chosen": {"adamw.lr": one["lr"]},
        "at_edge": ["adamw.lr"] if one.get("edge") else [],
        "ledger": ledger,
        "runs": runs,
        "curve": curve(one, runs, draw),
    }


def failed(name: str, baseline: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """An arm that failed, and its only comparison."""
    one = {
        "name": name,
        "stage": {"kind": "train", "name": "adapt"},
        "changes": "adds galore(rank=32)",
        "failed": FAILED,
        "parameters": PARAMETERS,
        "trainable": PARAMETERS,
        "trials": [],
        "chosen": {},
        "at_edge": [],
        "ledger": None,
        "runs": [],
        "curve": None,
    }
    empty = dict.fromkeys(
        ("values", "arm_mean", "baseline_mean", "difference", "low", "high", "p", "p_holm", "detectable")
    )
    compared = {
        "arm": name,
        "baseline": baseline,
        "metric": "loss/code",
        "better": "lower",
        "verdict": "failed",
        "exact": False,
        "reason": FAILED,
    }
    return one, compared | empty


def compare(
    arms: list[dict[str, Any]], metrics: tuple[str, ...] = METRICS, higher: tuple[str, ...] = ("gain/code",)
) -> list[dict[str, Any]]:
    """The comparisons of all arms with the first, as the engine makes them: Holm over the arms, one metric
    at a time."""
    base, *others = [a for a in arms if not a["failed"]]
    found = []
    for metric in metrics:
        of = {a["name"]: np.array([r["metrics"][metric] for r in a["runs"]]) for a in (base, *others)}
        tested = [paired(of[a["name"]] - of[base["name"]], arms=len(others)) for a in others]
        better = "higher" if metric in higher else "lower"
        for a, t, adjusted in zip(others, tested, holm([t.p for t in tested]), strict=True):
            one = {
                "arm": a["name"],
                "baseline": base["name"],
                "metric": metric,
                "better": better,
                "values": list(of[a["name"]] - of[base["name"]]),
                "arm_mean": float(of[a["name"]].mean()),
                "baseline_mean": float(of[base["name"]].mean()),
                "difference": t.difference,
                "low": t.low,
                "high": t.high,
                "p": t.p,
                "p_holm": adjusted,
                "verdict": verdict(t.difference, adjusted, better),
                "detectable": t.detectable,
                "exact": False,
            }
            if metric in EXACT:
                said = (
                    "no difference"
                    if not t.difference
                    else "better"
                    if (t.difference < 0) == (better == "lower")
                    else "worse"
                )
                one |= {
                    "low": t.difference,
                    "high": t.difference,
                    "p": None,
                    "p_holm": None,
                    "verdict": said,
                    "detectable": None,
                    "exact": True,
                }
            found.append(one)
    order = {a["name"]: i for i, a in enumerate(arms)}
    return sorted(found, key=lambda c: order[c["arm"]])


def result(arms: tuple[dict[str, Any], ...] = ARMS, broken: str = "galore") -> dict[str, Any]:
    """Four arms of five seeds, tuned, and a fifth that failed."""
    draw = np.random.default_rng(7)
    shared = draw.normal(0, 0.02, SEEDS)
    made = [written(one, [run(one, seed, draw, shared) for seed in range(SEEDS)], draw) for one in arms]
    compared = compare(made)
    if broken:
        one, none = failed(broken, made[0]["name"])
        made, compared = [*made, one], [*compared, none]
    floor = {
        m: {
            "half_width": noise_floor([r["metrics"][m] for r in made[0]["runs"]]),
            "source": "baseline over its seeds",
        }
        for m in ("loss/code", "forgetting/prose")
    }
    edges = [
        f"the best adamw.lr of {a['name']} lies at the edge of what was tried "
        f"({a['chosen']['adamw.lr']:g}): widen it"
        for a in made
        if a["at_edge"]
    ]
    return {
        "title": "Adapters on Python code",
        "recipe": "compare_adapters.toml",
        "stage": "adapt",
        "metric": "loss/code",
        "baseline": made[0]["name"],
        "aa": False,
        "budget": {"currency": "tokens", "amount": TOKENS},
        "seeds": list(range(SEEDS)),
        "new": ["code"],
        "old": ["prose"],
        "tuning": {
            "trials": 4,
            "seeds": [1_000_003],
            "split": "tune",
            "metric": "loss/code",
            "early_stop": False,
        },
        "arms": made,
        "comparisons": compared,
        "noise": floor,
        "caveats": {
            a["name"]: (
                [f"tuned to the edge of what was tried: adamw.lr {a['chosen']['adamw.lr']:g}"]
                if a["at_edge"]
                else []
            )
            for a in made[1:]
        },
        "race": None,
        "warnings": edges,
        "said": SAID,
        "seconds": 2712.0,
        "date": "2026-11-22T10:31:07+00:00",
        "command": "trainwright compare recipes/compare_adapters.toml",
        "hardware": "2 CPU cores (AMD EPYC), 24 GiB",
        "versions": VERSIONS,
        "git": "3f9c2ab41d7e5508c6a1",
        "seed": 0,
    }


def raced() -> dict[str, Any]:
    """Seeds were added until all was decided: an arm stopped early, another was not decided."""
    written = result(ARMS[:3], broken="")
    for arm in written["arms"]:
        if arm["name"] == "lora":
            arm["runs"] = arm["runs"][:4]
    for one in written["comparisons"]:
        if one["arm"] == "lora":
            one["values"] = one["values"][:4]
        if one["metric"] == "loss/code":
            one |= {"detectable": None, "verdict": "not decided" if one["arm"] == "dora" else "worse"}
    return written | {
        "caveats": {
            "lora": ["4 seeds, fewer than five"],
            "dora": ["rates searched unequally: 1 of 2 here, 1 of 1 of full"],
        },
        "race": {"most": 5, "margin": None, "seeds": {"full": 5, "lora": 4, "dora": 5}, "runs": 14,
                 "fixed_runs": 15, "decided": {"lora": True, "dora": False}},
    }


def single() -> dict[str, Any]:
    """One arm beside the baseline."""
    return result(ARMS[:2], broken="")


def bare(written: dict[str, Any]) -> dict[str, Any]:
    """The same without curves and trials, which take long to draw."""
    return written | {"arms": [a | {"curve": None, "trials": []} for a in written["arms"]], "tuning": None}


def again() -> dict[str, Any]:
    """An A/A comparison: nothing differs but the seeds."""
    written = result((ARMS[0], ARMS[0] | {"name": "full again"}), broken="")
    return written | {
        "aa": True,
        "noise": {"loss/code": {"half_width": 0.0078, "source": "A/A"}},
        "warnings": [],
    }


def many() -> dict[str, Any]:
    """Twelve arms, some with long names."""
    names = [
        "full",
        "lora",
        "dora",
        "ia3",
        "lora-rank-64-all-linear-layers",
        "lora-rank-64-attention-only",
        "vera",
        "half_fine_tuning",
        "bitfit",
        "spdf",
        "lora+ with a learning rate ratio of sixteen",
        "oft",
    ]
    made = [
        arm(
            n,
            3.112 + 0.02 * ((i * 5) % 9) - 0.04 * (i % 3 == 2),
            0.2 / (1 + i % 4),
            1 / (1 + 3 * i),
            (1 + 0.07 * (i % 5), 1 - 0.04 * i),
            1e-3,
        )
        for i, n in enumerate(names)
    ]
    return result(tuple(made))


def plain() -> dict[str, Any]:
    """Merging: no budget, no tuning, no curve, no ledger, and a metric of which more is better."""
    draw = np.random.default_rng(3)
    made = []
    for name, level in (("slerp", 0.62), ("task_arithmetic", 0.655)):
        runs = [
            {
                "seed": s,
                "metrics": {"accuracy/questions": level + draw.normal(0, 0.004), "stored_bytes": 269e6},
                "hashes": {},
                "failed": None,
            }
            for s in range(3)
        ]
        ledger = dict.fromkeys(
            (
                "steps",
                "tokens",
                "flops",
                "seconds_per_step",
                "peak_memory_bytes",
                "state_bytes",
                "trainable_parameters",
            )
        )
        made.append(
            {
                "name": name,
                "stage": {"kind": "merge", "name": "merged"},
                "changes": f"merges by {name}",
                "failed": None,
                "parameters": 134_515_008,
                "trainable": 0,
                "trials": [],
                "chosen": {},
                "at_edge": [],
                "runs": runs,
                "curve": None,
                "ledger": ledger | {"seconds": 1.2, "stored_bytes": 269e6, "parameters": 134_515_008},
            }
        )
    compared = compare(made, ("accuracy/questions", "stored_bytes"), ("accuracy/questions",))
    return result() | {
        "title": "Two ways to merge",
        "stage": "merged",
        "metric": "accuracy/questions",
        "baseline": "slerp",
        "arms": made,
        "budget": {"currency": "recipe", "amount": None},
        "seeds": [0, 1, 2],
        "new": [],
        "old": [],
        "tuning": None,
        "noise": {},
        "caveats": {"task_arithmetic": ["3 seeds, fewer than five"]},
        "comparisons": compared,
        "warnings": [],
        "said": {k: SAID[k] for k in ("pairing", "interval", "verdict")},
        "git": None,
        "hardware": "",
    }


@contextmanager
def without_pictures() -> Iterator[None]:
    """Pages whose pictures to take along are empty files: drawn three times each, they are most of the work
    of a page. What stands on the page is drawn."""
    def picture(figure: Figure, out: Path, name: str) -> str:
        for kind in export.FORMATS:
            (out / f"{name}.{kind}").touch()
        return f"{name}.png"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "picture", picture)
        yield
