"""A cheap classifier of texts, made from two piles of them."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from trainwright.corpus.clusters import need_sklearn

if TYPE_CHECKING:
    from daft import DataFrame

FEATURES = 1 << 18
"""Words and pairs of words are hashed to so many columns."""


@dataclass(frozen=True)
class Classifier:
    """Logistic regression on the counts of words (what stands between spaces) and of pairs of neighbours, scaled to length 1."""

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
        counter = HashingVectorizer(lowercase=False, token_pattern=r"\S+", ngram_range=(1, 2), n_features=FEATURES,
                                    alternate_sign=False)
        regression = LogisticRegression(C=10.0, max_iter=1000)
        return cls(counter, regression.fit(counter.transform([*wanted, *unwanted]), [1] * len(wanted) + [0] * len(unwanted)))

    def probability(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Of being of the wanted kind, for each text."""
        return self.regression.predict_proba(self.counter.transform(texts))[:, 1] if texts else np.empty(0)

    def judge(self, documents: DataFrame, column: str) -> tuple[pa.Table, NDArray[np.int64]]:
        """``id`` and probability of each document that says something, a batch at a time, and the characters of each."""
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
