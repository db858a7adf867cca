"""Numbers of evaluations: which way one is better, and the settings that name one."""
from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any, Literal

LOWER = ("loss", "answer_loss", "perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte",
         "forgetting", "seconds_per_step", "peak_memory_bytes", "trainable_parameters", "state_bytes",
         "stored_bytes", "delta_bytes")
"""Metrics of which less is better."""
HIGHER = ("gain", "recall", "accuracy", "acc", "acc_norm", "exact_match", "f1", "macro_f1", "bleu", "rouge")
"""Metrics of which more is better."""
MARK = "names a number of the evaluations on the way"
Metric = Annotated[str, MARK]
"""A setting that names a number of the evaluations on the way, such as ``loss/code``: the stage must make it
(``stages/_examine.py``)."""


def direction(metric: str) -> Literal["lower", "higher"] | None:
    """Which way a metric is better, as far as its name says: ``loss/code``, ``exact_match,strict/gsm8k``."""
    word = metric.partition("/")[0].partition(",")[0]
    return "lower" if word in LOWER else "higher" if word in HIGHER else None


def improves(value: float, than: float, way: Literal["lower", "higher"], by: float = 0.0) -> bool:
    """Whether a number is better than another by more than ``by``."""
    return value < than - by if way == "lower" else value > than + by


def watched(settings: Any) -> dict[str, str]:
    """The settings of a method that name numbers of the evaluations on the way, with what they name."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    return {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)
            if MARK in getattr(hints[f.name], "__metadata__", ())}
