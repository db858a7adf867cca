"""Language models that read in both directions and fill gaps: BERT and its kin."""
from __future__ import annotations

from typing import Any, ClassVar

from trainwright.families.base import Family


class MaskedLm(Family):
    """transformers' ``…ForMaskedLM``: logits of every position, given all positions of the row."""

    auto: ClassVar[str] = "AutoModelForMaskedLM"
    benign: ClassVar[tuple[str, ...]] = (r"(^|\.)pooler\.", r"^cls\.seq_relationship\.", r"^classifier\.")

    def takes(self, config: Any) -> bool:
        return not config.is_encoder_decoder and not getattr(config, "is_decoder", False)
