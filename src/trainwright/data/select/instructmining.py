"""Keeps the documents that a linear rule on indicators holds to be best, fitted on what tuning on documents like them does.

"Instruction Mining: High-Quality Instruction Data Selection for Large Language Models" (InstructMining, arXiv 2307.06290). What a
set of documents D is worth is the loss L on ``from.target`` of a model tuned on it; for indicators I_i of a document,

    log L(D) = b_0 + sum_i b_i mean_D(I_i) + noise.

``subsets`` sets of ``size`` documents are drawn so that their means lie far apart: each prefers documents high in a random
combination of the (standardised) indicators. A copy of ``from.model`` is tuned on each, its loss on the target measured, and b
found by least squares. Documents are then ranked by the log loss that the rule predicts of their own indicators, which the column
``column`` holds, and those with the lowest are kept. Indicators are columns that methods before have written, or ``length``, the
characters of the text; fit and ranking read the same numbers, as they are.

The rule is noted as ``instructmining/INDICATOR``, and as ``instructmining/r2`` how much of the variance it tells of a model that
was left out of the fit (0 and less: nothing, and the selection is a matter of chance). Give it as ``rule`` to rank others without
tuning anything; coefficients of a paper's version hold for its model and its indicators alone.
Indicators are not screened: leave out those whose b are noise. What is fitted is the loss of a model, not that of a document.
Costs ``subsets`` times a tuning on ``size`` documents, each kept in the stage's scratch.

Errors: neither indicators nor rule, or both; no such column, one without numbers, NaN; subsets whose indicators tell too little
apart; a subset or a count larger than the documents that have all indicators; a loss that is no number.
"""
from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from trainwright.core.bench import Bench
from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.corpus.selecting import amount, attach, check_amount, columns, keep, settled

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context


class Instructmining(Curate):
    """Keeps documents of which a fitted linear rule predicts the lowest loss."""

    indicators: tuple[str, ...] = ()
    """Columns to fit the rule on; or ``rule``."""
    rule: dict[str, float] | None = None
    """A rule that was fitted before: change of the log loss a unit of each indicator."""
    subsets: int = 30
    """Models that are tuned to fit the rule."""
    size: int = 200
    """Documents of a subset."""
    lr: float = 1e-3
    """Learning rate of the tuning."""
    epochs: int = 1
    """Passes over a subset."""
    split: Literal["train", "tune"] = "tune"
    """Split of ``from.target`` on which the tuned models are measured."""
    target: int = 512
    """Documents of the target at most, drawn at random."""
    count: int | None = None
    """Documents to keep; or ``share``."""
    share: float | None = None
    """Documents to keep, as a share of those that have all indicators; a tenth where neither is said."""
    column: str = "instructmining"
    """Name of the column with the predicted log loss, but for its constant part."""
    length: int = 512
    """Tokens that the model sees at once; fewer where it has fewer positions."""
    batch_tokens: int = 2048
    """Tokens of a step of the tuning, about."""
    bench: ClassVar[Bench | None] = Bench(
        suite="select", at="chosen", drop=("random_subset",),
        add=({"use": "score_loss"}, {"use": "instructmining", "indicators": ["loss", "length"], "share": 0.2, "subsets": 8,
                                     "size": 12, "target": 24}),
        claim="models tuned on what it selects are better than models tuned on unfiltered data in 42.5 % of cases",
        scale="the paper tunes models of 7 billion parameters on instructions with eight indicators, a reward model's among them")
    example: ClassVar[dict[str, Any]] = {"indicators": ["score", "length"], "subsets": 5, "size": 12, "target": 8, "share": 0.5,
                                         "length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)
        if bool(self.indicators) == bool(self.rule):
            raise ValueError("say either indicators (fit a rule) or rule (use one)")
        if len(set(self.indicators)) < len(self.indicators):
            raise ValueError(f"indicators names one twice: {', '.join(self.indicators)}")
        for name in ("size", "epochs", "target", "length", "batch_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if self.subsets < len(self.indicators) + 2:
            raise ValueError(f"subsets must be {len(self.indicators) + 2} or more to fit {len(self.indicators)} indicators, not "
                             f"{self.subsets}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        from trainwright.data.select._linear_rule import indicators
        rows = settled(documents, ctx)
        names = tuple(self.rule or self.indicators)
        ids, values = indicators(rows, names, self.name)
        many = amount(len(ids), self.count, self.share, self.name)
        rule = np.array(list(self.rule.values())) if self.rule else self._fitted(rows, ids, values, ctx)
        predicted = values @ rule
        order = np.lexsort((ids.astype(str), predicted))[:many]
        told = pa.table({"id": pa.array(ids[order], pa.large_string()), self.column: predicted[order]})
        return attach(keep(rows, ids[order]), told)

    def _fitted(self, rows: DataFrame, ids: NDArray[np.object_], values: NDArray[np.float64],
                ctx: Context) -> NDArray[np.float64]:
        from trainwright.data.select._linear_rule import draw, fit
        if self.size > len(ids):
            raise UserError(f"{self.name}: size = {self.size:,} is more than the {len(ids):,} documents with all indicators.")
        drawn = [draw(values, self.size, ctx.rng(f"instructmining/{i}", at=0)) for i in range(self.subsets)]
        losses = self._losses(rows, [ids[one] for one in drawn], ctx)
        means = np.stack([values[one].mean(0) for one in drawn])
        rule, r2 = fit(self.indicators, means, np.log(losses), self.name)
        ctx.note(f"{self.name}/r2", r2)
        told = " ".join(f"{b:+.3g} {name}" for name, b in zip(self.indicators, rule, strict=True))
        ctx.show(self.name, f"log loss changes with {told} (R2 {r2:.2f} on models left out, of {self.subsets})")
        for name, slope in zip(self.indicators, rule, strict=True):
            ctx.note(f"{self.name}/{name}", float(slope))
        return rule

    def _losses(self, rows: DataFrame, subsets: list[NDArray[np.object_]], ctx: Context) -> NDArray[np.float64]:
        """The loss on the target of a model tuned on each subset; from the scratch where it was tuned before."""
        from trainwright.corpus.tokens import Document
        from trainwright.data.select._target import target_documents
        from trainwright.data.select._tuning import tuned_loss
        from trainwright.lm.scoring import Reader
        assert ctx.folder is not None
        reader = Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens)
        target = target_documents(ctx, self.split, self.target, self.name)
        table = columns(keep(rows, sorted(set(np.concatenate(subsets)))), "id", "text", "messages").to_pylist()
        texts = {r["id"]: Document(r["id"], r["text"] or "", r["messages"]) for r in table}
        found = []
        for number, subset in enumerate(subsets):
            file = ctx.folder / f"loss-{reader.key}-{number:04d}"
            if not file.is_file():
                draw = ctx.rng(f"instructmining/tuning/{number}", at=0)
                loss = tuned_loss(reader, [texts[name] for name in sorted(subset)], target, self.lr, self.epochs, draw)
                new = file.with_suffix(f".{os.getpid()}")
                new.write_text(loss.hex())
                os.replace(new, file)
            found.append(float.fromhex(file.read_text()))
        if not all(math.isfinite(loss) and loss > 0 for loss in found):
            raise UserError(f"{self.name}: models tuned with lr = {self.lr} have no number above 0 as their loss on from.target: "
                            "take a smaller one, or a target in which there is something to predict.")
        return np.array(found)
