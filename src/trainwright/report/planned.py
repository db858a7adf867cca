"""A plan as people read it in a terminal."""
from __future__ import annotations

from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from trainwright.core.plan import Plan, StagePlan


def render(plan: Plan) -> Group:
    """Stage by stage: who acts where, then the figures."""
    parts = [Text(plan.recipe.title, style="bold"), Text()]
    for one in plan.stages:
        parts += [_head(one), _places(one), Text()]
    return Group(*parts, _total(plan))


def _head(one: StagePlan) -> Text:
    stage = one.job.stage
    inputs = ", ".join(f"{role} = {' + '.join(s.name for s in sources)}" for role, sources in one.job.inputs.items())
    state = ("in the store", "green") if one.cached else ("to run", "yellow")
    return Text.assemble((stage.name, "bold cyan"), f"  {stage.kind}  ", state, (f"  from {inputs}" if inputs else "", "dim"),
                         (f"  {one.job.key}", "dim"))


def _places(one: StagePlan) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for place, who in one.places:
        table.add_row(place, escape(" → ".join(who)))
    if one.owns:
        table.add_row("owns", escape("; ".join(one.owns)))
    if figures := _figures(one.figures):
        table.add_row("costs", figures)
    if one.note:
        table.add_row("note", escape(one.note))
    return table


def _figures(f: dict[str, float]) -> str:
    said = []
    if "parameters" in f:
        some = f.get("trainable", f["parameters"]) != f["parameters"]
        trainable = f", {number(f['trainable'])} of them trained" if some else ""
        said.append(f"{number(f['parameters'])} parameters{trainable}")
    if "steps" in f:
        said.append(f"{f['steps']:,.0f} steps")
    for key, unit in (("tokens", "tokens"), ("flops", "FLOPs")):
        if f.get(key):
            said.append(f"{number(f[key])} {unit}")
    if "memory_bytes" in f:
        said.append(f"about {f['memory_bytes'] / 2**30:.2f} GiB at the peak")
    if "seconds" in f:
        said.append(f"about {duration(f['seconds'])}")
    return " · ".join(said)


def _total(plan: Plan) -> Text:
    left = [s for s in plan.stages if not s.cached]
    seconds = sum(s.figures.get("seconds", 0.0) for s in left)
    takes = f", training takes about {duration(seconds)} on this machine" if seconds else ""
    return Text(f"{len(left)} of {len(plan.stages)} stages to run{takes}")


def number(x: float) -> str:
    """``1.31 M``."""
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g} {unit}"
    return f"{x:.3g}"


def duration(seconds: float) -> str:
    """``48 s``, ``12 min``, ``3.1 h``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
