"""Language models of an encoder, which reads in both directions, and a decoder, which writes: T5, BART."""
from __future__ import annotations

from typing import Any, ClassVar

from trainwright.families.base import Family


class Seq2seq(Family):
    """transformers' ``…ForConditionalGeneration`` from text to text."""

    auto: ClassVar[str] = "AutoModelForSeq2SeqLM"
    causal: ClassVar[bool] = True

    def takes(self, config: Any) -> bool:
        return bool(config.is_encoder_decoder)
