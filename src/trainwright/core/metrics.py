"""Numbers of evaluations: which way one is better, and the settings that name one."""
from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal

from trainwright.core.settings import hints_of

Way = Literal["lower", "higher"]
WAYS: dict[str, Way] = {
    "loss": "lower", "answer_loss": "lower", "perplexity": "lower", "word_perplexity": "lower",
    "byte_perplexity": "lower", "bits_per_byte": "lower", "forgetting": "lower",
    "seconds_per_step": "lower", "peak_memory_bytes": "lower", "trainable_parameters": "lower",
    "state_bytes": "lower", "stored_bytes": "lower", "delta_bytes": "lower", "average_precision": "higher",
    "gain": "higher", "recall": "higher", "accuracy": "higher", "acc": "higher", "acc_norm": "higher",
    "exact_match": "higher", "f1": "higher", "macro_f1": "higher", "bleu": "higher", "rouge": "higher",
}
"""Which way metrics are better."""
MARK = "names a number of the evaluations on the way"
Metric = Annotated[str, MARK]
"""A setting that names a number of the evaluations on the way, such as ``loss/code``: the stage must make it
(``stages/_examine.py``)."""


def direction(metric: str) -> Way | None:
    """Which way a metric is better, as far as its name says: ``loss/code``, ``exact_match,strict/gsm8k``."""
    return WAYS.get(metric.partition("/")[0].partition(",")[0])


def improves(value: float, than: float, way: Way, by: float = 0.0) -> bool:
    """Whether a number is better than another by more than ``by``."""
    return value < than - by if way == "lower" else value > than + by


def watched(settings: Any) -> dict[str, str]:
    """The settings of a method that name numbers of the evaluations on the way, with what they name."""
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)
            if MARK in getattr(hints_of(settings.__class__)[f.name], "__metadata__", ())}
