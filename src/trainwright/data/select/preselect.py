"""Keeps documents of the kind on which models' losses reveal which model is better.

"Predictive Data Selection: The Data That Predicts Is the Data That Teaches" (PreSelect, arXiv 2503.00808).
The order of ability of N models, ``from.models``, is known. With L_m(d) the loss of model m on all of
document d, the predictive strength of d is the number of pairs of models whose losses agree with that
order:

    S(d) = |{(a, b): a better than b, L_a(d) < L_b(d)}|,    0 <= S(d) <= N (N - 1) / 2

L is a sum of nats, not a mean per token, so models with different tokenizers can be compared (bits per
character are L / (ln 2 · characters of d), which orders models alike). The models read ``sample``
documents. Those with the highest S that occurs (in the paper: all pairs) are positive examples; as many
with the lowest S, from 0 on, are negative ones. A classifier of words and pairs of words (hashed, logistic
regression; in the paper: fastText) learns the two kinds and gives each document of the corpus the
probability of being positive, as the column ``column``. The most probable documents are kept, up to
``share`` of all characters.

The accuracy of the classifier on a held-out fifth of the examples is noted as ``preselect/accuracy``. A
document longer than ``length`` is read in parts, each without the text before it (in the paper: overlapping
windows).

Not with models of nearly the same ability, nor with an accuracy near a half: the selection is then a matter
of chance.

Errors: fewer than two models, one without a tokenizer, losses that are not finite, all documents of one
predictive strength, scikit-learn not installed. A document of white space alone is never kept. """
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainwright.core.errors import UserError
from trainwright.core.method import Curate
from trainwright.core.stage import Role
from trainwright.corpus.clusters import need_sklearn
from trainwright.corpus.selecting import columns, keep, keep_first, settled

if TYPE_CHECKING:
    import pyarrow as pa
    from daft import DataFrame

    from trainwright.core.context import Context

FEATURES = 1 << 18
"""Words and pairs of words are hashed to so many columns."""


class Preselect(Curate):
    """Keeps what a classifier takes for documents whose losses rank models correctly."""

    share: float = 0.1
    """Characters to keep, as a share of the incoming ones."""
    best: Literal["first", "last"] = "first"
    """Where in ``from.models`` the best model stands: they go down or up in ability."""
    sample: int = 20_000
    """Documents that the models read; the others are left to the classifier."""
    column: str = "preselect"
    """Name of the column with the probabilities."""
    length: int = 512
    """Longest piece a model reads, in tokens; shorter if it has fewer positions."""
    batch_tokens: int = 8192
    """Tokens of a forward pass, roughly."""
    needs: ClassVar[tuple[str, ...]] = ("sklearn",)
    roles: ClassVar[dict[str, Role]] = {"models": Role(many=True, needed=True)}
    expected_failures: ClassVar[dict[str, str]] = {
        "rows_stream_through_it": "a selection compares all documents before it keeps one"}
    example: ClassVar[dict[str, Any]] = {"share": 0.5, "sample": 100, "length": 32, "batch_tokens": 512}

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, not {self.share}")
        if min(self.sample, self.length, self.batch_tokens) < 1:
            raise ValueError(f"sample, length and batch_tokens must be positive, not {self.sample}, "
                             f"{self.length} and {self.batch_tokens}")

    def depends(self, root: Path) -> str:
        from trainwright.corpus.clusters import need_sklearn
        return need_sklearn(self.name)

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        from trainwright.corpus.selecting import attach
        from trainwright.corpus.tokens import uniform
        from trainwright.data.select._panel import panel
        rows = settled(documents, ctx)
        ids = columns(rows, "id")["id"].to_numpy().astype(object)
        place = np.array([uniform(name, f"preselect/{ctx.seed}") for name in ids])
        read = keep(rows, ids[np.argsort(place, kind="stable")[:self.sample]])
        seen = panel(read, ctx, self.name, f"the best one {self.best}", self.length, self.batch_tokens)
        nats = seen.loss * seen.tokens
        agreeing = strength(nats if self.best == "first" else nats[:, ::-1])
        place = np.array([uniform(name, f"preselect/{ctx.seed}") for name in seen.ids])
        wanted, unwanted = examples(agreeing, place)
        classifier = self._learned(read, seen.ids[wanted], seen.ids[unwanted], ctx)
        told, characters = classifier.judge(rows, self.column)
        ids, likely = told["id"].to_numpy(), told[self.column].to_numpy()
        order = np.lexsort((ids.astype(str), -likely))
        most = np.searchsorted(np.cumsum(characters[order]), self.share * characters.sum(), side="right")
        return attach(keep_first(rows, ids, order, max(1, int(most)), ctx, self.column, likely), told)

    def _learned(self, read: DataFrame, wanted: NDArray[np.object_], unwanted: NDArray[np.object_],
                 ctx: Context) -> Any:
        table: pa.Table = columns(keep(read, [*wanted, *unwanted]), "id", "text")
        texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        good, bad = ([texts[name] or "" for name in kind] for kind in (wanted, unwanted))
        if len(good) >= 5:
            held = np.arange(len(good)) % 5 == 0
            rest = [[text for text, out in zip(kind, held, strict=True) if not out] for kind in (good, bad)]
            trial = Classifier.of(rest[0], rest[1], self.name)
            right = [*(trial.probability(good[::5]) > 0.5), *(trial.probability(bad[::5]) <= 0.5)]
            ctx.note(f"{self.name}/accuracy", float(np.mean(right)))
            ctx.show(self.name, f"the classifier is right on {np.mean(right):.0%} of {len(right)} examples "
                                "left out")
        return Classifier.of(good, bad, self.name)


def strength(nats: NDArray[np.float64]) -> NDArray[np.int64]:
    """For losses [documents, models], the best model first: how many pairs of models each document ranks
    as they are."""
    agreeing = np.zeros(len(nats), dtype=np.int64)
    for better, worse in combinations(range(nats.shape[1]), 2):
        agreeing += nats[:, better] < nats[:, worse]
    return agreeing


def examples(agreeing: NDArray[np.int64],
             place: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Documents of the highest predictive strength, and as many from the lowest on; among equals those
    that ``place`` puts first.

    Raises:
        UserError: all are of one strength.
    """
    top = agreeing == agreeing.max()
    many = min(int(top.sum()), int((~top).sum()))
    if not many:
        raise UserError(f"preselect: all {len(agreeing):,} documents that the models read agree with "
                        f"{agreeing.max()} pairs of their ranking, so that none is more predictive than "
                        "another: take models further apart, or set best to the other end of from.models.")
    return np.lexsort((place, -agreeing))[:many], np.lexsort((place, agreeing))[:many]


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on the counts of words (what stands between spaces) and of pairs of neighbours,
    scaled to length 1."""

    counter: Any
    regression: Any

    @classmethod
    def of(cls, wanted: Sequence[str], unwanted: Sequence[str], method: str) -> Classifier:
        """Learn to tell two kinds of text apart.

        Raises:
            UserError: scikit-learn is not installed.
        """
        need_sklearn(method)
        from sklearn.feature_extraction.text import HashingVectorizer
        from sklearn.linear_model import LogisticRegression
        counter = HashingVectorizer(lowercase=False, token_pattern=r"\S+", ngram_range=(1, 2),
                                    n_features=FEATURES,
                                    alternate_sign=False)
        regression = LogisticRegression(C=10.0, max_iter=1000)
        return cls(counter, regression.fit(counter.transform([*wanted, *unwanted]),
                                           [1] * len(wanted) + [0] * len(unwanted)))

    def probability(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of being of the wanted kind, for each text."""
        return self.regression.predict_proba(self.counter.transform(texts))[:, 1] if texts else np.empty(0)

    def judge(self, documents: DataFrame, column: str) -> tuple[pa.Table, NDArray[np.int64]]:
        """``id`` and probability of each document that says something, a batch at a time, and the
        characters of each."""
        from trainwright.corpus.documents import stream
        ids: list[str] = []
        characters: list[int] = []
        found = []
        for batch in stream(documents.select("id", "text")):
            said = [(r["id"], r["text"]) for r in batch.to_pylist() if (r["text"] or "").strip()]
            ids += [name for name, _ in said]
            characters += [len(text) for _, text in said]
            found.append(self.probability([text for _, text in said]))
        told = pa.table({"id": pa.array(ids, pa.large_string()), column: np.concatenate(found)})
        return told, np.array(characters, dtype=np.int64)
