"""Finished runs as rows of numbers, for a law to be fitted on: from a file, or from the manifests of a store.

A row has ``parameters`` (entries of the matrices, without embeddings and head), ``tokens``,
``batch_tokens``, ``lr`` (the peak),
``loss`` (at the end, on held-out documents), and whatever else a law asks for. Rows from a store also
have ``run``, ``stage``,
``optimizer``, ``data`` (the corpus' hash), every number of a method's settings as ``METHOD.SETTING`` and
every number of the evaluation by its name (``loss/code``), and of the first fifth of their steps the means
``early_loss`` and ``early_grad_norm`` (before clipping).
"""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from trainwright import families
from trainwright.core import registry
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.files import expected
from trainwright.core.method import Fit, Optimizer, ScalingLaw
from trainwright.core.shown import brief
from trainwright.storage.artifact import Artifact
from trainwright.storage.store import Store

Row = dict[str, Any]
EARLY = 0.2
"""Share of the steps of a run that is early."""


def fitted(law: ScalingLaw, rows: Sequence[Row], ctx: Context, where: str) -> Fit:
    """The law fitted on rows that have been looked at.

    Raises:
        UserError: a row without a column that the law needs, or with one that is no positive number; rows
            that do not suffice.
    """
    for number, row in enumerate(rows, 1):
        at = f"{where}: row {number}" + (f" ({row['run']})" if "run" in row else "")
        for name in law.columns:
            if name not in row:
                raise UserError(
                    f"{at} has no {name!r}{suggest(name, row)}; {law.name} needs {', '.join(law.columns)}."
                )
            value = row[name]
            good = (
                isinstance(value, (int, float))
                and not isinstance(value, bool)
                and math.isfinite(value)
                and value > 0
            )
            if not good:
                raise UserError(f"{at}: {name} must be a positive number, not {value!r}.")
    if not rows:
        raise UserError(f"{where}: there is no run to fit {law.name} on.")
    return law.fit(rows, ctx)


def intervals(fit: Fit) -> dict[str, tuple[float, float]]:
    """Where 95 % of the draws have each of the law's constants: its settings that are numbers and
    differ between draws."""
    names = [f.name for f in dataclasses.fields(fit.law)]
    return {
        n: _most([getattr(one, n) for one in fit.draws])
        for n in names
        if _vary([getattr(one, n) for one in fit.draws])
    }


def predicted(fit: Fit, known: dict[str, float]) -> dict[str, tuple[Any, tuple[float, float] | None]]:
    """What the fitted law suggests, with the 95 % interval of each number over the draws."""
    told = [suggested(one, known) for one in fit.draws]
    return {name: (value, _most([t[name] for t in told]) if _vary([t[name] for t in told]) else None)
            for name, value in suggested(fit.law, known).items()}


def suggested(law: ScalingLaw, known: dict[str, float]) -> dict[str, Any]:
    """What a law suggests, each number of a table under a name of its own: ``mixture.weights.code``."""
    return {f"{name}.{key}" if key else name: one for name, value in law.suggest(known).items()
            for key, one in (value.items() if isinstance(value, dict) else [("", value)])}


def _vary(values: list[Any]) -> bool:
    return all(isinstance(v, float) for v in values) and len(set(values)) > 1


def _most(values: list[float]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


# ---- files -------------------------------------------------------------------------------------------------


def from_file(file: Path) -> list[Row]:
    """Rows of a ``.jsonl``, ``.csv`` or ``.parquet`` file; empty cells are left out.

    Raises:
        UserError: no such file, another kind of file, or one that cannot be read.
    """
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if not file.is_file():
        raise UserError(f"there is no file {file}.")
    if file.suffix not in readers:
        raise UserError(
            f"{file}: rows come as {', '.join(readers)}, not as {file.suffix or 'a file without an ending'}."
        )
    try:
        return readers[file.suffix](file)
    except UnicodeDecodeError:
        raise UserError(f"{file}: not a text file in UTF-8.") from None
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}.") from None


def _jsonl(file: Path) -> list[Row]:
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            why = "values are nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise UserError(f"{file}, line {number}: no JSON: {why.rstrip('.')}.") from None
        if not isinstance(row, dict):
            raise UserError(
                f'{file}, line {number}: a row is a table such as {{"tokens": 1e9}}, not {brief(row)}.'
            )
        rows.append({k: v for k, v in row.items() if v is not None})
    return rows


def _csv(file: Path) -> list[Row]:
    csv.field_size_limit(sys.maxsize)                # a note may be longer than the 128 KiB of the module
    with file.open(encoding="utf-8-sig", newline="") as handle:
        reader, rows = csv.reader(handle, strict=True), list[Row]()
        names: list[str] = []
        try:
            for row in (row for row in reader if row):
                if len(set(names := names or row)) < len(names):
                    raise UserError(f"{file}: two columns have one name: rename or drop one of them.")
                if len(row) != len(names):
                    raise UserError(f"{file}, line {reader.line_num}: this row has {len(row)} columns, and "
                                    f"the first line names {len(names)}.")
                rows.append({k: _number(v) for k, v in zip(names, row, strict=True) if k and v})
        except csv.Error as error:
            raise UserError(f"{file}, line {reader.line_num}: {error}.") from None
    return rows[1:]


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _parquet(file: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq
    try:
        rows: list[Row] = pq.read_table(file).to_pylist()
    except pa.ArrowException as error:
        raise UserError(f"{file}: no Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from None
    return [{k: v for k, v in row.items() if v is not None} for row in rows]


# ---- a store -----------------------------------------------------------------------------------------------


def from_store(
    store: Store, scratch: bool, stage: str | None = None, loss: str | None = None
) -> tuple[list[Row], list[str]]:
    """A row for each finished training stage, and notes on what was left out.

    Args:
        scratch: only stages that made their model from scratch.
        stage: only stages of this name.
        loss: number of the evaluation to take as the loss; default: the mean of ``loss/DOMAIN`` over the
            domains. Where no stage was evaluated, the end of the training loss, smoothed.

    Raises:
        UserError: no stage of this name, or none that measured this number.
    """
    whole, notes = _finished(store, scratch, stage)
    measured = {n for a in whole for n in a.figures["evaluation"]}
    if loss is not None and loss not in measured:
        raise UserError(f"{store.root}: no stage measured {loss!r}{suggest(loss, measured)}.")
    evaluated = any(_losses(a, loss) for a in whole)
    if not evaluated and whole:
        notes.append("no run was evaluated: the loss is that of training at the end, smoothed")
    rows, damaged = list[Row](), 0
    for artifact in whole:
        try:
            with expected(artifact.path):
                rows += [row] if (row := _row(artifact, loss, evaluated)) is not None else []
        except UserError as error:
            damaged += 1
            notes.append(f"{error}; it is left out")
    if left := len(whole) - len(rows) - damaged:
        notes.append(f"{left} runs have no evaluation or several optimizers and are left out")
    return rows, notes


def _finished(store: Store, scratch: bool, stage: str | None) -> tuple[list[Artifact], list[str]]:
    """The training stages that ran to their end, and notes on the others."""
    kept = [a for a in store.artifacts() if a.manifest["kind"] == "train"]
    found = [a for a in kept if "model" in a.manifest["settings"] and "stopped" in a.figures
             and isinstance(a.figures.get("evaluation"), dict)]
    odd = len(kept) - len(found)
    names = {a.manifest["stage"] for a in found}
    if stage is not None and stage not in names:
        raise UserError(f"{store.root}: there is no training stage {stage!r}{suggest(stage, names)}.")
    found = [a for a in found if stage in (None, a.manifest["stage"])]
    found = [a for a in found if a.manifest["settings"]["model"] is not None or not scratch]
    whole = [a for a in found if not a.figures["stopped"]]
    early = len(found) - len(whole)
    notes = [f"{early} runs were stopped early and are left out"] if early else []
    notes += [f"{odd} manifests lack what a run leaves and are left out"] if odd else []
    return whole, notes


def _row(artifact: Artifact, loss: str | None, evaluated: bool) -> Row | None:
    manifest = artifact.manifest
    settings, figures, evaluation = (
        manifest["settings"],
        manifest["figures"],
        manifest["figures"]["evaluation"],
    )
    row: Row = {}
    rates = []
    for table in settings["methods"]:
        row |= _numbers(table["use"], table)
        if table["use"] in registry.cards() and issubclass(registry.find(table["use"]), Optimizer):
            rates.append((table["use"], table["lr"]))
    losses = _losses(artifact, loss)
    if len(rates) != 1 or evaluated != bool(losses):
        return None
    data = manifest["inputs"].get("data", [{}])[0].get("hash", "")
    own: Row = {
        "run": artifact.path.name,
        "stage": manifest["stage"],
        "data": data,
        "optimizer": rates[0][0],
        "lr": rates[0][1],
        "parameters": _body(artifact.path),
        "tokens": settings["tokens"] or figures["tokens"],
        "batch_tokens": figures["tokens"] / figures["steps"],
        "loss": sum(losses) / len(losses) if evaluated else smoothed([r["loss"] for r in artifact.metrics()]),
    }
    return row | dict(evaluation) | _early(artifact) | own


def _early(artifact: Artifact) -> Row:
    """Means over the first fifth of the steps, at least one; what was not logged is left out."""
    steps = [r for r in artifact.metrics() if "step" in r and "loss" in r]
    first = steps[:max(1, round(EARLY * len(steps)))]
    kept = {"early_loss": "loss", "early_grad_norm": "grad_norm"}
    return {name: float(np.mean([r[one] for r in first])) for name, one in kept.items()
            if first and all(one in r for r in first)}


def _numbers(at: str, table: dict[str, Any]) -> Row:
    """Every number in a table, under its path: ``adamw.lr``, ``mixture.weights.code``."""
    row: Row = {}
    for key, value in table.items():
        if isinstance(value, dict):
            row |= _numbers(f"{at}.{key}", value)
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            row[f"{at}.{key}"] = value
    return row


def _losses(artifact: Artifact, name: str | None) -> list[float]:
    told = artifact.figures["evaluation"]
    return [v for n, v in told.items() if n == name or (name is None and n.startswith("loss/"))]


def smoothed(losses: list[float], share: float = 0.01) -> float:
    """The last value of a curve behind a Gaussian filter whose width is a share of
    its steps (at most 100)."""
    from scipy.ndimage import gaussian_filter1d
    width = min(100.0, max(1.0, share * len(losses)))
    return float(gaussian_filter1d(losses, sigma=width)[-1])


@cache
def _body(folder: Path) -> int:
    """Parameters without embeddings of the model in an artifact."""
    return families.body_parameters(families.skeleton(families.load_config(folder, "fit-law"), "fit-law"))
