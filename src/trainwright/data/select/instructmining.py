"""Keeps the documents that a linear rule on indicators ranks best, fitted on losses after tuning on samples.

"Instruction Mining: High-Quality Instruction Data Selection for Large Language Models" (InstructMining, arXiv
2307.06290). Left out: BlendSearch over the number of documents, in whose place a grid is refined, since there
is one dimension; and the choice of indicators by their significance, which is left to the reader of the
coefficients. The worth of a set of documents D is the loss L on ``from.target`` of a model tuned on it; for
indicators I_i of a document,

    log L(D) = b_0 + sum_i b_i mean_D(I_i) + noise

``subsets`` sets of ``size`` documents are drawn so that their means are far apart: each prefers documents
high in a random combination of the (standardized) indicators. A copy of ``from.model`` is tuned on each,
its loss on the target measured, and b found by least squares. Documents are then ranked by the log loss
that the rule predicts from their own indicators, which the column ``column`` holds, and the lowest are
kept. Indicators are columns that earlier methods have written, or ``length``, the characters of the text;
fit and ranking read the same numbers, unscaled. Those of the paper's first version are
``instruction_length``, ``response_length`` and ``mtld`` (``score_wording``), ``perplexity``
(``score_perplexity``), ``knn`` (``embed``, ``score_neighbors``), ``reward`` (``score_reward``),
``naturalness``, ``coherence`` and ``understandability`` (``score_answers``); its later version keeps the
reward and the last three.

How many documents to keep is searched for with ``trials`` (the paper's later version: BlendSearch over the
size): models are tuned on the best n documents for half of the trials with n between ``smallest`` and all,
evenly on a scale of logarithms, and for the rest between the neighbours of the best n so far; the n with
the lowest loss on the target is kept. BlendSearch draws its points at random and prices them by their cost;
in one dimension a grid that is refined does the same with fewer surprises.

The rule is noted as ``instructmining/INDICATOR``, and as ``instructmining/r2`` the variance it explains of
models left out of the fit. Give it as ``rule`` to rank others without tuning anything; coefficients of a
version of the paper hold for its model and its indicators alone. Indicators are not screened: leave out
those whose b are noise. The fit predicts a model's loss, not a document's. It costs ``subsets`` times a
tuning on ``size`` documents, each kept in the stage's scratch folder.

Not with an r2 of 0 or less: the rule explains nothing, and the selection is a matter of chance.

Errors: neither indicators nor rule, or both; no such column, one without numbers, NaN; subsets whose
indicators hardly differ; a subset or a count larger than the documents that have all indicators; a loss
that is not finite. """
from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.core.method import UNTRAINED, Curate
from trainwright.core.stage import CORPUS, Role
from trainwright.corpus.selecting import (
    amount,
    attach,
    check_amount,
    columns,
    keep,
    keep_first,
    scores,
    settled,
)
from trainwright.corpus.tokens import Document
from trainwright.lm.losses import evaluating, token_losses
from trainwright.lm.scoring import Reader

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

TILT = 2.0
"""How much a subset prefers documents high in its combination of indicators, against noise (Gumbel) of
size 1."""


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
    """Documents to keep, as a share of those that have all indicators; a tenth by default."""
    trials: int = 0
    """Sizes to try, each for the price of a tuning on so many documents, in place of ``count`` and
    ``share``; 0: none."""
    smallest: int = 50
    """With ``trials``: the fewest documents that are tried."""
    column: str = "instructmining"
    """Name of the column with the predicted log loss, but for its constant part."""
    length: int = 512
    """Longest piece the model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 2048
    """Tokens of a tuning step, roughly."""
    roles: ClassVar[dict[str, Role]] = {"model": Role(needed=True), "target": CORPUS._replace(needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"indicators": ["score", "length"], "subsets": 5, "size": 12,
                                         "target": 8, "share": 0.5,
                                         "length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        check_amount(self.count, self.share)
        if bool(self.indicators) == bool(self.rule):
            raise ValueError("say either indicators (fit a rule) or rule (use one)")
        if len(set(self.indicators)) < len(self.indicators):
            raise ValueError(f"indicators names one twice: {', '.join(self.indicators)}")
        if self.trials and (self.count is not None or self.share is not None):
            raise ValueError("say trials (search for the number of documents), or count or share")
        if self.trials < 0 or self.trials == 1:
            raise ValueError(f"trials must be 0, or 2 and more, not {self.trials}")
        for name in ("size", "epochs", "target", "length", "batch_tokens", "smallest"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")
        if self.lr <= 0:
            raise ValueError(f"lr must be positive, not {self.lr}")
        if self.subsets < len(self.indicators) + 2:
            raise ValueError(f"subsets must be {len(self.indicators) + 2} or more to fit "
                             f"{len(self.indicators)} indicators, not {self.subsets}")

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import pyarrow as pa

        rows = settled(documents, ctx)
        names = tuple(self.rule or self.indicators)
        ids, values = indicators(rows, names, self.name)
        many = 0 if self.trials else amount(len(ids), self.count, self.share, self.name)
        rule = np.array(list(self.rule.values())) if self.rule else self._fitted(rows, ids, values, ctx)
        predicted = values @ rule
        order = np.lexsort((ids.astype(str), predicted))
        many = many or self._searched(rows, ids[order], ctx)
        told = pa.table({"id": pa.array(ids, pa.large_string()), self.column: predicted})
        return attach(keep_first(rows, ids, order, many, ctx, self.column, predicted), told)

    def _fitted(self, rows: DataFrame, ids: NDArray[np.object_], values: NDArray[np.float64],
                ctx: Context) -> NDArray[np.float64]:
        if self.size > len(ids):
            raise UserError(f"{self.name}: size = {self.size:,} is more than the {len(ids):,} documents with "
                            "all indicators.")
        drawn = [draw(values, self.size, ctx.rng(f"instructmining/{i}", at=0)) for i in range(self.subsets)]
        losses = self._losses(rows, [ids[one] for one in drawn], "loss", ctx)
        means = np.stack([values[one].mean(0) for one in drawn])
        rule, r2 = fit(self.indicators, means, np.log(losses), self.name)
        ctx.note(f"{self.name}/r2", r2)
        told = " ".join(f"{b:+.3g} {name}" for name, b in zip(self.indicators, rule, strict=True))
        ctx.show(self.name, f"log loss changes with {told} (R2 {r2:.2f} on models left out, of "
                            f"{self.subsets})")
        for name, slope in zip(self.indicators, rule, strict=True):
            ctx.note(f"{self.name}/{name}", float(slope))
        return rule

    def _searched(self, rows: DataFrame, ranked: NDArray[np.object_], ctx: Context) -> int:
        """How many of the ranked documents make the best model, of the sizes that are tried."""
        if not len(ranked):
            raise UserError(f"{self.name} has nothing to choose from: no document has all indicators.")
        losses: dict[int, float] = {}
        for _ in range(2):
            sizes = between(losses, self.trials - len(losses)) if losses \
                else grid(self.smallest, len(ranked), -(-self.trials // 2))
            found = self._losses(rows, [ranked[:n] for n in sizes], "size", ctx) if sizes else np.zeros(0)
            losses |= dict(zip(sizes, found.tolist(), strict=True))
        best = min(losses, key=lambda n: (losses[n], n))
        ctx.note(f"{self.name}/size", float(best))
        ctx.show(f"{self.name}/sizes", "loss on the target: "
                 + ", ".join(f"{n:,}: {losses[n]:.4f}" for n in sorted(losses)))
        return best

    def _losses(self, rows: DataFrame, subsets: list[NDArray[np.object_]], what: str,
                ctx: Context) -> NDArray[np.float64]:
        """The loss on the target of a model tuned on each subset; from the scratch where it was tuned
        before."""
        from trainwright.corpus.tokens import Document
        from trainwright.data.select._target import target_documents
        from trainwright.lm.scoring import Reader
        assert ctx.folder is not None
        reader = Reader.of(ctx.path("model"), ctx, self.name, self.length, self.batch_tokens)
        target = target_documents(ctx, self.split, self.target, self.name)
        table = columns(keep(rows, sorted(set(np.concatenate(subsets)))), "id", "text",
                        "messages").to_pylist()
        texts = {r["id"]: Document(r["id"], r["text"] or "", r["messages"]) for r in table}
        found = []
        for number, subset in enumerate(subsets):
            place = number if what == "loss" else len(subset)
            file = ctx.folder / f"{what}-{reader.key}-{place:04d}"
            if not file.is_file():
                draw = ctx.rng(f"instructmining/tuning/{place if what == 'loss' else what}", at=0)
                loss = tuned_loss(reader, [texts[name] for name in sorted(subset)], target, self.lr,
                                  self.epochs, draw)
                new = file.with_suffix(f".{os.getpid()}")
                new.write_text(loss.hex())
                os.replace(new, file)
            found.append(float.fromhex(file.read_text()))
        if not all(math.isfinite(loss) and loss > 0 for loss in found):
            raise UserError(f"{self.name}: models tuned with lr = {self.lr} have no number above 0 as their "
                            "loss on from.target: take a smaller one, or a target in which there is "
                            "something to predict.")
        return np.array(found)


def draw(values: NDArray[np.float64], size: int, generator: torch.Generator) -> NDArray[np.int64]:
    """Rows of a subset of ``values`` [documents, indicators], without replacement: p ~ exp(TILT w'z) for a
    random unit vector w, z being the standardized indicators, so the means of several subsets are far
    apart in all directions."""
    spread = values.std(0)
    z = (values - values.mean(0)) / np.where(spread > 0, spread, 1.0)
    w = torch.randn(values.shape[1], generator=generator, dtype=torch.float64).numpy()
    uniform = torch.rand(len(values), generator=generator, dtype=torch.float64).clamp(1e-12, 1 - 1e-12)
    key = TILT * (z @ (w / np.linalg.norm(w))) - np.log(-np.log(uniform.numpy()))
    return np.argsort(-key, kind="stable")[:size]


def grid(fewest: int, most: int, many: int) -> tuple[int, ...]:
    """So many sizes from ``fewest`` to ``most``, evenly on a scale of logarithms; fewer where they agree."""
    return tuple(sorted({round(n) for n in np.geomspace(min(fewest, most), most, max(2, many))}))


def between(losses: dict[int, float], many: int) -> tuple[int, ...]:
    """So many sizes between the neighbours of the best size so far, none of them tried before."""
    sizes = sorted(losses)
    at = sizes.index(min(sizes, key=lambda n: (losses[n], n)))
    low, high = sizes[max(0, at - 1)], sizes[min(len(sizes) - 1, at + 1)]
    fine = np.geomspace(low, high, many + 3 if at not in (0, len(sizes) - 1) else many + 2)
    return tuple(sorted({round(n) for n in fine} - set(sizes)))[:max(0, many)]


def fit(names: Sequence[str], means: NDArray[np.float64], log_losses: NDArray[np.float64],
        method: str) -> tuple[NDArray[np.float64], float]:
    """Coefficients in the units of the indicators, and the variance they explain of subsets left out of the
    fit, as a share.

    Args:
        means: [subsets, indicators].

    Raises:
        UserError: the subsets cannot separate the indicators.
    """
    centre, spread = means.mean(0), means.std(0)
    flat = [name for name, s, c in zip(names, spread, centre, strict=True) if s <= 1e-9 * max(1.0, abs(c))]
    if flat:
        raise UserError(f"{method}: {flat[0]!r} has the same mean in all {len(means)} subsets, so that "
                        "nothing can be learned of it: leave it out, or take smaller subsets of a corpus in "
                        "which it differs.")
    z = (means - centre) / spread
    if np.linalg.matrix_rank(z, tol=1e-6 * len(z) ** 0.5) < len(names):
        raise UserError(f"{method}: over the {len(means)} subsets the indicators {', '.join(names)} move "
                        "together, so that it cannot be told which of them matters: leave one out.")
    y = log_losses - log_losses.mean()
    slopes = np.linalg.lstsq(z, y, rcond=None)[0]
    hat = np.einsum("ij,ji->i", z, np.linalg.pinv(z)) + 1 / len(z)
    rest = np.square((y - z @ slopes) / np.maximum(1 - hat, 1e-9)).sum()
    whole = np.square(y * len(z) / (len(z) - 1)).sum()
    return slopes / spread, float(1 - rest / whole) if whole else 0.0


def indicators(rows: DataFrame, names: tuple[str, ...],
               method: str) -> tuple[NDArray[np.object_], NDArray[np.float64]]:
    """Ids, sorted, and numbers [documents, indicators] of the documents that have them all."""
    if "length" in names and "length" not in rows.column_names:
        rows = rows.with_column("length", rows["text"].length())
    found = {name: dict(zip(*scores(rows, name, method), strict=True)) for name in names}
    ids = sorted(set.intersection(*map(set, found.values())))
    values = np.array([[found[name][one] for name in names] for one in ids]).reshape(len(ids), len(names))
    if len(wrong := np.argwhere(~np.isfinite(values))):
        document, indicator = wrong[0]
        raise UserError(f"{method}: the indicator {names[indicator]!r} of {ids[document]!r} is "
                        f"{values[document, indicator]}, no finite number.")
    return np.array(ids, dtype=object), values


def tuned_loss(reader: Reader, training: Sequence[Document], target: Sequence[Document], lr: float,
               epochs: int,
               generator: torch.Generator) -> float:
    """Mean nats a token on ``target`` of a copy of the model that was tuned on ``training``: AdamW without
    decay, at a constant learning rate, without dropout, batches in the order that ``generator`` draws."""
    model = copy.deepcopy(reader.model).requires_grad_(True)
    tuned = replace(reader, model=model)
    batches = [batch for _, batch in tuned.batches(tuned.encode(training))]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    with evaluating(model), torch.enable_grad():
        for _ in range(epochs):
            for i in torch.randperm(len(batches), generator=generator).tolist():
                optimizer.zero_grad()
                losses = token_losses(model, batches[i], reader.ctx)
                (losses.sum() / (batches[i]["targets"] != UNTRAINED).sum().clamp(min=1)).backward()
                optimizer.step()
    return mean_loss(tuned, target)


def mean_loss(reader: Reader, documents: Sequence[Document]) -> float:
    """Nats a token over all documents; NaN where there is nothing to predict."""
    nats, tokens = 0.0, 0
    with torch.no_grad(), evaluating(reader.model):
        for _, batch in reader.batches(reader.encode(documents)):
            nats += float(token_losses(reader.model, batch, reader.ctx).double().sum())
            tokens += int((batch["targets"] != UNTRAINED).sum())
    return nats / tokens if tokens else float("nan")
