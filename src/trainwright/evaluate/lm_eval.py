"""Tasks of the LM Evaluation Harness, on the live model.

"Lessons from the Trenches on Reproducible Evaluation of Language Models" (arXiv 2405.14782; EleutherAI's
lm-evaluation-harness). A multiple-choice task ranks the answers by log-likelihood, a generation task
compares what the model writes; the metrics are the harness', named ``METRIC/TASK`` as all numbers are
(``acc_norm/arc_easy``), with the harness' filter after a comma where a task has several
(``exact_match,strict-match/gsm8k``). Beside each stands its standard error over the items
(``acc_norm_stderr/arc_easy``): of a mean in closed form, else by 100 bootstrap samples.

With ``from.reference`` another model answers the same items, and of each metric that counts items

    METRIC_gain/TASK = mean of the differences on an item,  _gain_low and _gain_high = its interval of 95 %

by Student's t over the paired differences. That is much narrower than two errors side by side, as items are
hard or easy for both.

Tasks of the harness download their data once from the Hub; tasks of your own (the harness' YAML files in
``include_path``) may read local files and need no network.
Do not use it for a model that is not a transformers model, or with a few items: with n items the standard
error of an accuracy is sqrt(acc (1 - acc) / n).

Errors: the extra is not installed; an unknown task; a task whose data cannot be downloaded; no tokenizer.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import os
import statistics
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel

from trainwright import families
from trainwright.core import sharding
from trainwright.core.context import Context
from trainwright.core.errors import UserError, suggest
from trainwright.core.method import Evaluator
from trainwright.core.settings import FilePath
from trainwright.core.stage import Role
from trainwright.families.factory import uncompiled

SAMPLES = 100
"""Bootstrap samples for the standard error of a metric that is no mean."""
ALONE = "DISABLE_MULTIPROC"
"""What the harness looks at before it starts processes."""


Items = dict[str, dict[int, float]]
"""What each item counted, by ``METRIC/TASK`` and the item's number."""


class LmEval(Evaluator):
    """Measures tasks of the harness. Every rank evaluates all items, so that sharded models work too."""

    tasks: tuple[str, ...]
    """Tasks, groups or tags of the harness, such as arc_easy or blimp."""
    limit: int | None = None
    """Use only the first items of each task; all by default."""
    num_fewshot: int | None = None
    """Solved examples before each item; the task's own number by default."""
    include_path: FilePath | None = None
    """Folder with task files of your own (YAML of the harness)."""
    batch_size: int = 16
    """Sequences scored at once."""
    roles: ClassVar[dict[str, Role]] = {"reference": Role()}
    example: ClassVar[dict[str, Any]] = {"tasks": ("arc_easy",), "limit": 2}
    needs: ClassVar[tuple[str, ...]] = ("lm_eval", "network")

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("tasks must name at least one task.")
        if (self.limit is not None and self.limit < 1) or self.batch_size < 1:
            raise ValueError("limit and batch_size must be 1 or more.")

    def measure(self, model: nn.Module, ctx: Context) -> dict[str, float]:
        if not isinstance(model, PreTrainedModel) or ctx.tokenizer is None:
            raise UserError("lm_eval needs a causal model of transformers and its tokenizer.")
        numbers, items = self._answered(model, ctx)
        if ctx.inputs.get("reference"):
            numbers |= gains(items, self._reference(ctx))
        return numbers

    def _reference(self, ctx: Context) -> Items:
        """The items of the other model, which is asked once for all models of a stage."""
        file = ctx.folder / "lm_eval_reference.json" if ctx.folder is not None else None
        if file is not None and file.is_file():
            known = json.loads(file.read_text(encoding="utf-8"))
            return {name: {int(i): x for i, x in found.items()} for name, found in known.items()}
        other: Any = families.load(ctx.path("reference"), "lm_eval").to(ctx.device).eval()
        _, items = self._answered(other, ctx)
        if file is not None and sharding.main():
            file.write_text(json.dumps(items), encoding="utf-8")
        return items

    def _answered(self, model: PreTrainedModel, ctx: Context) -> tuple[dict[str, float], Items]:
        """The numbers of a model, and its items."""
        with quiet():
            tasks = self.load(ctx)
            training = model.training
            try:
                return self.evaluate(model, ctx.tokenizer, tasks)
            finally:
                model.train(training)

    def evaluate(self, model: PreTrainedModel, tokenizer: Any, tasks: Any) -> tuple[dict[str, float], Items]:
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        kind, device = None, model.device.type
        if torch.is_autocast_enabled(device):  # the harness would switch it off
            kind = torch.get_autocast_dtype(device)
        wrapped = HFLM(
            pretrained=model,
            tokenizer=copy.deepcopy(tokenizer),
            batch_size=self.batch_size,
            mixed_precision_dtype=kind,
        )
        with in_this_process():
            found = evaluate(wrapped, tasks, limit=self.limit, bootstrap_iters=SAMPLES, log_samples=True)
        return numbers_of(found["results"]), items_of(found["samples"])

    def load(self, ctx: Context) -> Any:
        """The tasks and their data, as objects of the harness."""
        folder = None
        if self.include_path is not None:
            folder = (ctx.root / self.include_path).resolve()
            if not folder.is_dir():
                raise UserError(
                    f"lm_eval: include_path = {self.include_path!r}: there is no folder {folder}."
                )
        manager = index(folder, False)
        if any(t not in manager.task_index for t in self.tasks):
            manager = index(folder, True)
        for task in self.tasks:
            if task not in manager.task_index:
                hint = suggest(task, manager.task_index)  # all of its 14,000 names where none is near
                raise UserError(
                    "lm_eval: the harness has no task "
                    f"{task!r}{hint if len(hint) < 200 else ': see lm-eval ls'}."
                )
        try:
            with uncompiled():                          # tasks may bring Python of their own
                tasks = manager.load(list(self.tasks))
        except Exception as error:  # a download or a file, through several libraries
            why = " ".join(str(error).split())[:300]
            raise UserError(f"lm_eval: {', '.join(self.tasks)} could not be loaded: {why}") from error
        for task in tasks["tasks"].values():
            shots = task.get_config("num_fewshot") if self.num_fewshot is None else self.num_fewshot
            task.set_config(key="num_fewshot", value=shots or 0)
            task.set_fewshot_seed(seed=1234)  # the harness' own, whatever the run's seed: numbers compare
        return tasks


def items_of(samples: dict[str, list[dict[str, Any]]]) -> Items:
    """What each item counted, by metric, of the samples that the harness keeps."""
    out: Items = {}
    for task, found in samples.items():
        for one in found:
            for metric in one["metrics"]:
                if isinstance(one[metric], (bool, int, float)):
                    name = f"{metric},{one['filter']}".removesuffix(",none")
                    out.setdefault(f"{name}/{task}", {})[int(one["doc_id"])] = float(one[metric])
    return out


def gains(items: Items, reference: Items) -> dict[str, float]:
    """``METRIC_gain/TASK`` and its interval, over the items that both models answered."""
    from scipy.stats import t

    out = {}
    for name, found in items.items():
        both = sorted(found.keys() & reference.get(name, {}).keys())
        if len(both) < 2:
            continue
        apart = [found[i] - reference[name][i] for i in both]
        half = float(t.ppf(0.975, len(both) - 1)) * statistics.stdev(apart) / len(both) ** 0.5
        metric, _, task = name.partition("/")
        mean = sum(apart) / len(both)
        out |= {
            f"{metric}_gain/{task}": mean,
            f"{metric}_gain_low/{task}": mean - half,
            f"{metric}_gain_high/{task}": mean + half,
        }
    return out


@cache
def index(folder: Path | None, with_defaults: bool) -> Any:
    """The harness' list of tasks. Listing its own takes seconds, so it is done only on demand, and once."""
    try:
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError("the method lm_eval needs the harness: pip install trainwright[lm-eval].") from None
    return TaskManager(include_path=folder, include_defaults=with_defaults)


def numbers_of(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """``{task: {"acc,none": 0.5, "acc_stderr,none": 0.1}}`` as ``{"acc/task": 0.5, "acc_stderr/task": 0.1}``;
    what is no number (the error of a single item) is left out."""
    return {
        f"{metric.removesuffix(',none')}/{task}": float(value)
        for task, found in results.items()
        for metric, value in found.items()
        if "," in metric and isinstance(value, (int, float)) and math.isfinite(value)
    }


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """Keep the harness from starting processes for its bootstrap samples."""
    before = os.environ.get(ALONE)
    os.environ[ALONE] = "1"
    try:
        yield
    finally:
        os.environ.pop(ALONE)
        os.environ.update({} if before is None else {ALONE: before})


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the log lines and progress bars of the harness and ``datasets``, which would break the
    display."""
    loggers = [logging.getLogger(n) for n in ("lm_eval", "datasets")]
    levels = [x.level for x in loggers]
    for x in loggers:
        x.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        for x, level in zip(loggers, levels, strict=True):
            x.setLevel(level)
