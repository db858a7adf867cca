"""The page of a run: one HTML file that needs nothing else, with its plots as PNG files beside it."""
from __future__ import annotations

import base64
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure

from trainwright.core import stage as kinds
from trainwright.core.shown import plain
from trainwright.report import curated, left_out, numbers, plots
from trainwright.report.highlight import highlight
from trainwright.report.numbers import (
    Measured,
    count,
    duration,
    measured,
    metrics_of,
    share,
    signed,
    size,
    value,
)

STATES = {"cached": "from the store", "finished": "run now", "resumed": "resumed", "failed": "failed"}


@dataclass
class StageView:
    """What the page shows of one stage: its manifest, and what was read and drawn of its folder."""

    manifest: dict[str, Any]
    folder: Path
    plot: Markup | None = None
    picture: str = ""
    rows: list[Measured] = field(default_factory=list)

    @property
    def domains(self) -> list[tuple[str, str, list[Measured]]]:
        """What was measured, by domain: its name, its role, its rows."""
        grouped = itertools.groupby(self.rows, key=lambda r: (r.domain, r.role))
        return [(domain, role, list(rows)) for (domain, role), rows in grouped]

    @property
    def tables(self) -> list[tuple[tuple[str, ...], list[tuple[str, str, list[Measured]]]]]:
        """The domains by what was measured on them, losses first: a table each, without empty columns."""
        found: dict[tuple[str, ...], list[tuple[str, str, list[Measured]]]] = {}
        for domain in self.domains:
            found.setdefault(tuple(metrics_of(domain[2])), []).append(domain)
        return sorted(found.items(), key=lambda table: not set(table[0]) & set(numbers.SIGNED))

    @property
    def lossy(self) -> bool:
        """Whether it compares losses with those of a baseline."""
        measured_losses = any(m in numbers.SIGNED for r in self.rows for m in r.values)
        return measured_losses and bool(self.figures.get("baseline"))

    @property
    def ends(self) -> list[Measured]:
        """What was measured at the end of training: by domain, where anything was."""
        rows = measured({"numbers": {self.name: self.figures.get("evaluation") or {}}})
        return [row for row in rows if row.domain] or rows

    @property
    def beside(self) -> list[tuple[str, str]]:
        """What was measured of no domain, where ``ends`` is by domain: words and the value."""
        found = self.figures.get("evaluation") or {}
        whole = {name: x for name, x in found.items() if "/" not in name}
        return [] if len(whole) == len(found) else [
            (metric_name(name), f"{x:,.0f}" if x == round(x) else value(x)) for name, x in whole.items()]

    @property
    def name(self) -> str:
        return str(self.manifest["stage"])

    @property
    def label(self) -> str:
        """Its name as people read it: ``loop, round 2: tune``."""
        return label(self.name)

    @property
    def title(self) -> str:
        """Its name below the heading of its round."""
        found = kinds.round_of(self.name)
        return found[2] if found else self.name

    @property
    def round(self) -> str:
        """``loop, round 2`` where a repetition ran it, else nothing."""
        found = kinds.round_of(self.name)
        return f"{found[0]}, round {found[1]}" if found else ""

    @property
    def kind(self) -> str:
        return str(self.manifest.get("kind", ""))

    @property
    def cls(self) -> type[kinds.Stage]:
        """The class of its kind."""
        return kinds.stages().get(self.kind, kinds.Stage)

    @property
    def trains(self) -> bool:
        return self.cls.trains

    @property
    def methods(self) -> str:
        """The names of its methods."""
        used = (self.manifest.get("settings") or {}).get("methods") or ()
        return ", ".join(str(m.get("use")) for m in used)

    @property
    def figures(self) -> dict[str, Any]:
        return self.manifest.get("figures") or {}

    @property
    def seconds(self) -> float | None:
        """Of training what all steps took, however often it was interrupted; else of the stage."""
        of_steps = self.figures.get("seconds") if self.trains else None
        return self.manifest.get("seconds") if of_steps is None else of_steps

    @property
    def why(self) -> str:
        """The reason of a failure, or nothing."""
        if self.manifest.get("state") != "failed":
            return ""
        return str(self.manifest.get("why") or "no reason was given")

    @property
    def state(self) -> str:
        return STATES.get(self.manifest.get("state", ""), "")

    @property
    def pictures(self) -> list[tuple[str, str, str]]:
        """What methods drew: name, the picture as an address that holds it, and what it shows, in words."""
        kept = [(name, self.folder / entry["file"], entry["words"])
                for name, entry in (self.manifest.get("pictures") or {}).items()]
        return [(name, f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}", words)
                for name, file, words in kept if file.is_file()]

    @property
    def stored(self) -> int | None:
        """Bytes of the weights, or of the whole folder where it holds none."""
        if "stored_bytes" in self.figures:
            return int(self.figures["stored_bytes"])
        if not self.folder.is_dir():
            return None
        return sum(f.stat().st_size for f in self.folder.rglob("*") if f.is_file())


def write(out: Path, recipe_text: str, title: str, manifests: list[dict[str, Any]], folders: list[Path],
          plan: str) -> Path:
    """Write ``out/index.html`` and the plots as PNG; returns the page.

    Beside what the store writes, a manifest may hold ``state`` (``finished``, ``cached``, ``resumed``,
    ``failed``) and, where the stage failed, ``why``; such a one needs no more than ``stage`` and ``kind``.
    ``plan`` may be empty.
    """
    out.mkdir(parents=True, exist_ok=True)
    stages = [StageView(m, f) for m, f in zip(manifests, folders, strict=True)]
    rows = {s.name: metrics(s.folder) for s in stages if s.trains}
    for stage in stages:
        stage.rows = measured(stage.figures)
    colours = domain_colours(stages, rows)
    for stage in stages:
        if stage.trains:
            _plot_training(stage, rows[stage.name], colours, out)
        elif curated.selects(stage.figures):
            _plot_selection(stage, out)
        elif stage.rows:
            _plot_evaluation(stage, colours, out)
    text = environment().get_template("run.html").render(
        title=title, plan=plan.strip(), recipe=highlight(recipe_text), stages=stages, facts=facts(stages),
        story=story(stages), trained=[s for s in stages if s.trains], made=made_at_once(stages),
        judged=[s for s in stages if s.rows], total=total(stages),
        data=[(s, table) for s in stages if s.cls.makes == "corpus" and (table := data_table(s.folder))],
        left_out={s.name: left_out.for_page(s.folder) for s in stages if s.cls.makes == "corpus"},
        samples=[(s, list(texts.items())) for s in stages
                 if s.cls.makes != "corpus" and (texts := s.manifest.get("texts"))],
        pictures=[(s, shown) for s in stages if (shown := s.pictures)],
        versions=versions(stages),
        command=next((c for s in reversed(stages) if (c := s.manifest.get("command"))), ""))
    page = out / "index.html"
    page.write_text(plain(text, lines=True), encoding="utf-8")
    return page


@cache
def environment() -> Environment:
    """The templates, each compiled once."""
    made = Environment(loader=PackageLoader("trainwright.report", "templates"), autoescape=True,
                       trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"count": count, "size": size, "duration": duration, "value": value, "signed": signed,
                     "metric": metric_name, "metrics_of": metrics_of, "label": label, "by_round": by_round,
                     "share": share,
                     "pretty": lambda x: json.dumps(x, indent=2, ensure_ascii=False, default=str)}
    made.globals |= {"NONE": numbers.NONE, "SIGNED": numbers.SIGNED, "sources": sources}
    return made


def label(name: str) -> str:
    """The name of a stage as people read it: ``loop.2.tune`` is ``loop, round 2: tune``."""
    found = kinds.round_of(name)
    return f"{found[0]}, round {found[1]}: {found[2]}" if found else name


def by_round(stages: Sequence[StageView]) -> list[tuple[str, list[StageView]]]:
    """The stages in groups: the heading of a round with its stages, no heading for those of no repetition."""
    return [(heading, list(group)) for heading, group in itertools.groupby(stages, key=lambda s: s.round)]


def made_at_once(stages: Sequence[StageView]) -> list[StageView]:
    """Stages that made a model without training: merged it, pruned it, quantized it."""
    return [s for s in stages if s.cls.makes == "model" and not s.trains and s.figures.get("parameters")]


def sources(stage: StageView) -> str:
    """What it was made from, by role: ``model = base, data = corpus``."""
    inputs = stage.manifest.get("inputs") or {}
    return ", ".join(f"{role} = {' + '.join(label(str(one['stage'])) for one in found)}"
                     for role, found in inputs.items())


def metric_name(name: str) -> str:
    """``bits_per_byte/prose`` as people write it: ``bits per byte · prose``."""
    metric, _, domain = name.partition("/")
    return metric.replace("_", " ") + (f" · {domain}" if domain else "")


# ---- plots -----------------------------------------------------------------------------------------


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of ``metrics.jsonl`` without a last line that a crash cut off."""
    file = folder / "metrics.jsonl"
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]


def domain_colours(stages: Sequence[StageView], rows: dict[str, list[dict[str, Any]]]) -> dict[str, int]:
    """One colour for each domain, in all plots of the page; the first colour is that of the training loss."""
    seen = {name for written in rows.values() for row in written for name in row}
    names = {n.removeprefix("eval/loss/") for n in seen if n.startswith("eval/loss/")}
    names |= {r.domain for s in stages for r in s.rows}
    return {name: 1 + i for i, name in enumerate(sorted(names))}


def _plot_training(stage: StageView, rows: list[dict[str, Any]], colours: dict[str, int], out: Path) -> None:
    figure = plots.training(rows, colours)
    if figure:
        loss = [r["loss"] for r in rows if math.isfinite(r.get("loss", math.nan))]
        _keep(stage, figure, out, "loss",
              f"Training loss of the stage {stage.label}, from {value(loss[0])} to {value(loss[-1])}.")


def _plot_evaluation(stage: StageView, colours: dict[str, int], out: Path) -> None:
    words = {"gain": "new", "forgetting": "old", "change": "other"}
    rows = [r for model in stage.figures["numbers"] for r in stage.rows if r.model == model and r.compared]
    shown = [plots.Effect(f"{r.domain} ({words[r.role]})", label(r.model), r.lower, colour=colours[r.domain],
                          said=f"{r.role} {signed(r.against['loss'])}") for r in rows]
    if shown:
        base = label(stage.figures["baseline"])
        listed = "; ".join(f"{e.label} on {e.group}: {e.said}" for e in shown)
        _keep(stage, plots.effects(shown, f"worse than {base}", f"better than {base}"), out, "effect",
              f"Losses against that of {base}: {listed}.")


def _plot_selection(stage: StageView, out: Path) -> None:
    _keep(stage, curated.figure(stage.figures), out, "selected",
          f"What {stage.label} kept: {curated.label(stage.figures)}")


def _keep(stage: StageView, figure: Figure, out: Path, what: str, label: str) -> None:
    stage.picture = f"{what}-{re.sub(r'[^A-Za-z0-9_.+-]', '_', stage.name)}.png"
    plots.png(figure, out / stage.picture)
    stage.plot = Markup(plots.svg(figure, f"{what}-{stage.name}", label))


# ---- words -----------------------------------------------------------------------------------------


def story(stages: Sequence[StageView]) -> list[tuple[str, Markup]]:
    """What happened, in sentences: failures first, then what was learned and forgotten, or else how training
    ended. Before each stands the class of its list item."""
    lines = [("failure", Markup("<strong>{}</strong> failed: {}").format(s.label, s.why))
             for s in stages if s.why]
    for s in stages:
        for model in dict.fromkeys(r.model for r in s.rows if r.against):
            rows = [r for r in s.rows if r.model == model and r.compared and r.role != "change"]
            if rows:
                clauses = Markup(" and ").join(map(_clause, rows))
                lines.append(("", Markup("<strong>{}</strong> {}.").format(label(model), clauses)))
    if not any(css == "" for css, _ in lines):
        text = "<strong>{}</strong> trained on {} tokens in {}; its loss ended at {}."
        lines += [("", Markup(text).format(s.label, count(s.figures.get("tokens")),
                                           duration(s.figures.get("seconds")), value(s.figures.get("loss"))))
                  for s in stages if s.trains and not s.why]
    return lines


def _clause(row: Measured) -> Markup:
    x, loss = row.against["loss"], row.values["loss"]
    if row.good("loss") is None:
        verb, kind = ("did not change on", "")
    elif row.role == "gain":
        verb, kind = ("learned", "good") if x > 0 else ("got worse on", "bad")
    else:
        verb, kind = ("forgot some of", "bad") if x > 0 else ("got better on", "good")
    return Markup("{} <em>{}</em> (loss {}, <span class=\"{}\">{}</span>)").format(
        verb, row.domain, value(loss), kind, signed(-row.lower))


def facts(stages: Sequence[StageView]) -> list[tuple[str, str]]:
    """The few figures on top of the page."""
    sums = total(stages)
    made = [s for s in stages if s.cls.makes == "model" and s.figures.get("parameters")]
    found = [("parameters", count(max(s.figures["parameters"] for s in made)) if made else ""),
             ("tokens trained on", count(sums["tokens"]) if sums["tokens"] else ""),
             ("FLOPs", count(sums["flops"]) if sums["flops"] else ""),
             ("time of all stages", duration(sums["seconds"]) if sums["seconds"] else ""),
             ("peak memory", size(sums["memory"]) if sums["memory"] else "")]
    return [(name, text) for name, text in found if text]


def total(stages: Sequence[StageView]) -> dict[str, float]:
    """Sums over the stages, and the highest peak."""
    train = [s.figures for s in stages if s.trains]
    return {"tokens": sum(f.get("tokens") or 0 for f in train),
            "flops": sum(f.get("flops") or 0 for f in train),
            "seconds": sum(s.seconds or 0 for s in stages), "stored": sum(s.stored or 0 for s in stages),
            "memory": max([s.figures.get("peak_memory_bytes") or 0 for s in stages], default=0)}


# ---- tables ----------------------------------------------------------------------------------------


def data_table(folder: Path) -> list[tuple[str, dict[str, tuple[int, int]], int, int]]:
    """Each domain of a corpus with ``{split: (documents, tokens)}`` and the sums of both; the total last."""
    file = folder / "tokens" / "index.parquet"
    if not file.is_file():
        return []
    import pyarrow.parquet as pq
    index = pq.read_table(file, columns=["domain", "split", "length"]).combine_chunks()
    counts = [("length", "count"), ("length", "sum")]
    grouped = index.group_by(["domain", "split"]).aggregate(counts).to_pylist()
    splits = [s for s in ("train", "tune", "test") if any(g["split"] == s for g in grouped)]
    cells = {(g["domain"], g["split"]): (g["length_count"], g["length_sum"]) for g in grouped}
    domains = sorted({d for d, _ in cells})
    rows = [(d, {s: cells.get((d, s), (0, 0)) for s in splits}) for d in domains]
    if len(rows) > 1:
        sums = {s: (sum(r[s][0] for _, r in rows), sum(r[s][1] for _, r in rows)) for s in splits}
        rows.append(("all", sums))
    return [(d, r, sum(x[0] for x in r.values()), sum(x[1] for x in r.values())) for d, r in rows]


def versions(stages: Sequence[StageView]) -> dict[str, str]:
    """The version of every package; several where stages were made with different ones."""
    seen: dict[str, dict[str, None]] = {}
    for s in stages:
        for package, version in (s.manifest.get("versions") or {}).items():
            seen.setdefault(package, {})[str(version)] = None
    return {p: ", ".join(v) for p, v in seen.items()}
