"""Scores documents by how they are worded: lengths of instructions and answers, and lexical diversity.

Three of the indicators of "Instruction Mining: High-Quality Instruction Data Selection for Large Language
Models" (arXiv 2307.06290), the last after "MTLD, vocd-D, and HD-D: A validation study of sophisticated
approaches to lexical diversity assessment" (McCarthy and Jarvis 2010):

    instruction_length   characters that the user says, the mean over turns
    response_length      characters of an answer, the mean over turns; of a plain document, of its text
    mtld                 words of the answers / factors, the mean of reading forwards and backwards

A factor ends, and the count begins anew, where the share of different words among those read since the last
one falls below 0.72. What is left at the end with a share s is a part of a factor, (1 - s) / (1 - 0.72). A
text without a repeated word counts as one factor. Words are runs of letters and digits, in lower case.

Not to compare texts of a few words by ``mtld``, which needs about a hundred to be stable, nor languages that
write no spaces. A plain document has no ``instruction_length`` (null), an empty one has no ``mtld``.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any, ClassVar

from trainwright.core.method import Curate
from trainwright.corpus.editing import BETWEEN
from trainwright.corpus.turns import turns

if TYPE_CHECKING:
    from daft import DataFrame

    from trainwright.core.context import Context

THRESHOLD = 0.72
"""Share of different words below which a factor ends."""
COLUMNS = ("instruction_length", "response_length", "mtld")


class ScoreWording(Curate):
    """Adds the columns ``instruction_length``, ``response_length`` and ``mtld``."""

    example: ClassVar[dict[str, Any]] = {}

    def apply(self, documents: DataFrame, ctx: Context) -> DataFrame:
        import daft
        import pyarrow as pa

        def column(place: int) -> Any:
            @daft.func.batch(return_dtype=daft.DataType.float64())  # type: ignore[untyped-decorator]
            def told(texts: Any, messages: Any) -> Any:
                pairs = zip(texts.to_arrow().to_pylist(), messages.to_arrow().to_pylist(), strict=True)
                return pa.array([wording(text, talk)[place] for text, talk in pairs], pa.float64())
            return told(documents["text"], documents["messages"])

        return documents.with_columns({name: column(place) for place, name in enumerate(COLUMNS)})


def wording(text: str | None, messages: str | None) -> tuple[float | None, float | None, float | None]:
    """The three numbers of a document."""
    said = turns(messages)
    answers = [turn.response for turn in said] if messages else [text or ""]
    words = re.findall(r"\w+", BETWEEN.join(answers).lower())
    return (fmean(len(turn.instruction) for turn in said) if said else None,
            fmean(map(len, answers)) if answers else None, mtld(words))


def mtld(words: Sequence[str]) -> float | None:
    """Words to a factor, the mean over both directions; None where there is no word."""
    if not words:
        return None
    return fmean(len(words) / (factors(way) or 1.0) for way in (iter(words), reversed(words)))


def factors(words: Iterator[str]) -> float:
    """Stretches in which the share of different words falls below the threshold, and the part of one that is
    left at the end."""
    found, seen, many = 0.0, set[str](), 0
    for word in words:
        seen.add(word)
        many += 1
        if len(seen) / many < THRESHOLD:
            found, seen, many = found + 1, set(), 0
    return found + (1 - len(seen) / many) / (1 - THRESHOLD) if many else found
