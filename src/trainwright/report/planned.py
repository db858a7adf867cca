"""A plan as people read it in a terminal, and what a plan proposes."""
from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from trainwright.planning.fit import Proposal
from trainwright.planning.plan import Plan, StagePlan
from trainwright.report.numbers import count, duration


def render(plan: Plan) -> Group:
    """Stage by stage: who acts where, then the figures."""
    parts: list[Any] = [Text(plan.recipe.title, style="bold"), Text()]
    for one in plan.stages:
        parts += [_head(one), _places(one), Text()]
    return Group(*parts, _total(plan))


def proposals(found: Sequence[Proposal], size: str) -> Group:
    """A line for each stage, and the words that make a command of them; ``size`` is the limit as written."""
    if not found:
        return Group(Text(f"no training stage is to run: nothing has to fit into {size}"))
    lines = [_proposed(one, size) for one in found]
    words = [f"--set {one.stage}.{key}={json.dumps(value)}"
             for one in found for key, value in one.changes.items()]
    if words:
        lines += [Text(), Text(" ".join(words), style="bold")]
    if any(key.startswith("batch_") for one in found for key in one.changes):
        warning = "A smaller batch changes what is learned; the other settings do not."
        lines.append(Text(warning, style="yellow"))
    return Group(*lines)


def _proposed(one: Proposal, size: str) -> Text:
    name = Text(f"{one.stage:<8} ", style="bold cyan")
    if one.fits is None:
        return name + Text(f"is not known to fit into {size}: {one.note}")
    if not one.fits:
        return name + Text(f"nothing fits into {size}: {one.note}", style="red")
    changes = ", ".join(f"{k} = {json.dumps(v)}" for k, v in one.changes.items())
    how = f"with {changes}" if changes else "as it is"
    return name + Text(f"fits into {size} {how}: {_takes(one.figures)}")


def _takes(figures: dict[str, float]) -> str:
    parts = []
    if "memory_bytes" in figures:
        parts.append(f"about {figures['memory_bytes'] / 2**30:.2f} GiB at the peak")
    if "seconds" in figures:
        parts.append(f"about {duration(figures['seconds'])}")
    return " · ".join(parts)


def _head(one: StagePlan) -> Text:
    stage = one.job.stage
    inputs = ", ".join(f"{role} = {' + '.join(s.name for s in sources)}"
                       for role, sources in one.job.inputs.items())
    state = ("in the store", "green") if one.cached else ("to run", "yellow")
    return Text.assemble((stage.name, "bold cyan"), f"  {stage.kind}  ", state,
                         (f"  from {inputs}" if inputs else "", "dim"), (f"  {one.job.key}", "dim"))


def _places(one: StagePlan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for place, who in one.places:
        table.add_row(place, Text(" → ".join(who)))
    if one.owns:
        table.add_row("owns", Text("; ".join(one.owns)))
    if figures := _figures(one.figures):
        table.add_row("costs", figures)
    if one.note:
        table.add_row("note", Text(one.note))
    return table


def _figures(f: dict[str, Any]) -> str:
    parts = []
    if "parameters" in f:
        some = f.get("trainable", f["parameters"]) != f["parameters"]
        trainable = f", {count(f['trainable'])} of them trained" if some else ""
        parts.append(f"{count(f['parameters'])} parameters{trainable}")
    if "steps" in f:
        parts.append(f"{f['steps']:,.0f} steps")
    units = {"tokens": "tokens", "flops": "FLOPs"}
    parts += [f"{count(f[key])} {unit}" for key, unit in units.items() if f.get(key)]
    return " · ".join([*parts, *([_takes(f)] if _takes(f) else [])])


def _total(plan: Plan) -> Text:
    left = [s for s in plan.stages if not s.cached]
    seconds = sum(s.figures.get("seconds", 0.0) for s in left)
    takes = f", training takes about {duration(seconds)} on this machine" if seconds else ""
    return Text(f"{len(left)} of {len(plan.stages)} stages to run{takes}")
