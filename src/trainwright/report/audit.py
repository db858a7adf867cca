"""The page of an audit: one HTML file that needs nothing else, and what it says as JSON beside it."""
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from trainwright.core.shown import plain
from trainwright.report import plots
from trainwright.report.numbers import count, p_value, share, signed, value

Told = dict[str, Any]
"""What ``audit`` measured: a table as JSON holds it."""


def write(out: Path, told: Told, command: str = "") -> Path:
    """Write ``out/index.html`` and ``out/audit.json``; returns the page."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "audit.json").write_text(json.dumps(told, indent=1, ensure_ascii=False), encoding="utf-8")
    made = Environment(loader=PackageLoader("trainwright.report", "templates"), autoescape=True,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"value": value, "signed": signed, "share": share, "count": count, "p": p_value}
    text = made.get_template("audit.html").render(told=told, command=command, findings=told["findings"],
                                                  reliability=_reliability(told), forgotten=_forgotten(told),
                                                  moved=_moved(told))
    page = out / "index.html"
    page.write_text(plain(text, lines=True), encoding="utf-8")
    return page


def summary(told: Told) -> list[str]:
    """What was found, or that nothing was, in sentences."""
    if told["findings"]:
        return list(told["findings"])
    looked = sum(search["searched"] for search in told["leaks"])
    read = sum(search["documents"] for search in told["leaks"][:1])
    return [f"No sign of contamination: none of {looked:,} texts of the evaluation stands in {read:,} "
            f"training documents, and the model knows its test documents no better than others."]


def _reliability(told: Told) -> Markup:
    """How often it is right against how sure it is."""
    bins = told["calibration"]["curve"]
    x = [b["confidence"] for b in bins]
    lines = [plots.Line("measured", x, [b["right"] for b in bins], points=True),
             plots.Line("perfect", [0.0, max(x)], [0.0, max(x)], colour=-1)]
    figure = plots.curves(lines, "probability of the likeliest token", "share that is right")
    gap = told["calibration"]["gap"]
    words = f"Calibration: the model is {abs(gap):.1%} too {'sure' if gap > 0 else 'unsure'}"
    return Markup(plots.svg(figure, "audit-calibration", words))


def _forgotten(told: Told) -> Markup | None:
    """How much the loss rose since the base."""
    rows = [plots.Effect(domain, "", -found["forgetting"]["change"], -found["forgetting"]["high"],
                         -found["forgetting"]["low"], colour=i)
            for i, (domain, found) in enumerate(told["domains"].items()) if "change" in found["forgetting"]]
    if not rows:
        return None
    listed = "; ".join(f"{row.label} {signed(row.value)}" for row in rows)
    figure = plots.effects(rows, f"worse than {told['base']}", f"better than {told['base']}")
    return Markup(plots.svg(figure, "audit-forgetting", f"How much lower the loss is: {listed}"))


def _moved(told: Told) -> Markup | None:
    """How far the weights of each block moved."""
    blocks = [one for one in told["drift"] if one["where"].startswith("block ")]
    if len(blocks) < 2:
        return None
    x = np.arange(len(blocks)).tolist()
    figure = plots.curves([plots.Line("", x, [one["move"] for one in blocks], points=True)], "block",
                          "move against length")
    most = max(blocks, key=lambda one: one["move"])
    return Markup(plots.svg(figure, "audit-drift",
                            f"Drift of weights by block, the largest in {most['where']}: {most['move']:.3g}"))
